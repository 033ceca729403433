"""Score and output error of every method, over the density that it really reads."""
