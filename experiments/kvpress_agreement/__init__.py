"""Whether the evicting methods keep the keys that kvpress's presses keep."""
