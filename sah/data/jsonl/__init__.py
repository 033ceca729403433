"""Your own questions from a JSON-lines or parquet file: `dataset=jsonl dataset.path=...`."""

from __future__ import annotations
