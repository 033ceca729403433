"""Scores of predictions against reference answers, and their aggregates. Pure Python."""
