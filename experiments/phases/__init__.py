"""Question and answer sparse against the answer alone."""
