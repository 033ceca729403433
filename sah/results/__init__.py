"""Rows of a point, the crash-safe store that holds them, and where they came from. Imports no torch."""
