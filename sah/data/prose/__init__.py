"""Long prose, whose likelihood behind a context is measured."""
