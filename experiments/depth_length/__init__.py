"""Where in a text a needle is found, by its depth and the length of the text."""
