"""Configuration: dataclasses, where `conf/` lies, registration with Hydra, and validation. Imports no torch."""
