"""Scores that are sums of table entries, one for each part of a key's code."""

from __future__ import annotations

import torch

CODES = 256
"""Entries of a table: what a code of one byte can name."""

MANY_ROWS = 4
"""From how many rows of tables on the entries of all rows are read at once."""

FEW_KEYS = 1024
"""Up to how many keys all batch rows and heads are read at once."""

BLOCK_NUMBERS = 1 << 16
"""Sums that are added up at once where rows are many: they stay in the processor's cache."""


def lookup_sums(codes: torch.Tensor, tables: torch.Tensor) -> torch.Tensor:
    """Add up the table entries that codes name: sum over parts j of tables[..., j, codes[..., j]].

    Codes are read part by part, so that a part's codes of consecutive keys should lie next to each other in memory (a
    transposed view of (batch, kv_heads, parts, n)).

    Args:
        codes: (batch or 1, kv_heads, n, parts), uint8, or int16 for tables of another length.
        tables: (batch, kv_heads, rows, parts, 256 or what codes can name), float32.

    Returns:
        (batch, kv_heads, rows, n), float32.
    """
    batch, kv_heads, rows, _, _ = tables.shape
    if batch > 1 and len(codes) == 1:
        # Rows of one context read the same codes.
        together = lookup_sums(codes, tables.transpose(0, 1).flatten(1, 2).unsqueeze(0))
        return together[0].view(kv_heads, batch, rows, -1).transpose(0, 1)
    sums = torch.zeros(batch, kv_heads, rows, codes.shape[2], device=tables.device)
    if codes.shape[2] <= FEW_KEYS:
        for part in range(tables.shape[3]):
            places = codes[..., part].long().unsqueeze(2).expand(-1, -1, rows, -1)
            sums += tables[..., part, :].gather(-1, places)
        return sums
    add_up = _row_by_row if rows < MANY_ROWS else _all_rows
    for row in range(batch):
        for head in range(kv_heads):
            add_up(codes[row, head], tables[row, head], sums[row, head])
    return sums


def _row_by_row(codes: torch.Tensor, tables: torch.Tensor, sums: torch.Tensor) -> None:
    """Add the sums of codes (n, parts) in tables (rows, parts, entries) to zeros (rows, n)."""
    for part in range(tables.shape[1]):
        # Indices of 32 bits are selected by directly; bytes would have to become 64 bits wide.
        places = codes[:, part].int()
        for row in range(len(tables)):
            sums[row] += torch.index_select(tables[row, part], 0, places)


def _all_rows(codes: torch.Tensor, tables: torch.Tensor, sums: torch.Tensor) -> None:
    """Do as `_row_by_row` does, with the entries of all rows next to each other."""
    entries = tables.permute(1, 2, 0).contiguous()
    step = max(CODES, BLOCK_NUMBERS // len(tables))
    for start in range(0, len(codes), step):
        block = codes[start : start + step]
        total = torch.index_select(entries[0], 0, block[:, 0].int())
        for part in range(1, len(entries)):
            total += torch.index_select(entries[part], 0, block[:, part].int())
        sums[:, start : start + step] = total.mT
