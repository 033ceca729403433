"""One method a file: `<name>_config.py` holds the config and imports no torch, `<name>.py` the method."""
