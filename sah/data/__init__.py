"""Data sets: a context with its questions, and the loaders that make them. Imports nothing heavy."""

from __future__ import annotations

from sah.data.config import DatasetConfig
from sah.data.example import Example, PromptCounter, Question

__all__ = ["DatasetConfig", "Example", "PromptCounter", "Question"]
