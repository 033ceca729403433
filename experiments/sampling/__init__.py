"""Sampled keys against the largest ones at equal measured density."""
