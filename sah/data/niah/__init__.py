"""Needle in a haystack, in the forms of RULER (arXiv 2404.06654): see README.md in this folder."""

from __future__ import annotations
