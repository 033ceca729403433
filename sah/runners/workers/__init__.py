"""Who computes a group's rows beside this process."""
