"""Numeric building blocks; each fast form has its plain twin beside it."""
