"""Score over density for three methods."""
