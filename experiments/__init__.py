"""Runnable studies. Each is a preset in conf/experiment and a package here: `python -m experiments.<name>`."""
