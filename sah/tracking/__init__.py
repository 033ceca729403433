"""Trackers: where a finished point is shown to people. They own no result. Imports no wandb."""
