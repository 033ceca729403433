"""Score, likelihood and error of every method over density."""
