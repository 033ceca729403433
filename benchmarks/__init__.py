"""Speed, measured and reported; nothing here is asserted."""
