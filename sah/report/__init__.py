"""Tables and figures made from stored rows and metrics. Reads results, runs no model."""
