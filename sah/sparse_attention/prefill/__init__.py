"""Sparse prefill, one pattern a file: `<name>_config.py` holds its config without torch, `<name>.py` the pattern."""
