"""Sums of table entries against a loop over keys and parts."""

from __future__ import annotations

import pytest
import torch

from sah.sparse_attention.kernels import lookup
from sah.sparse_attention.kernels.lookup import lookup_sums


@pytest.mark.parametrize("rows", [1, 3, 4, 11])
@pytest.mark.parametrize("shared", [True, False], ids=["one context", "a context each"])
@pytest.mark.parametrize(
    ("entries", "kind", "length"), [(256, torch.uint8, 37), (1000, torch.int16, 600), (5, torch.uint8, 0)]
)
def test_sums_of_entries(
    entries: int, kind: torch.dtype, length: int, shared: bool, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    batch, kv_heads, parts = 3, 2, 4
    tables = torch.randn(batch, kv_heads, rows, parts, entries, generator=generator)
    codes = torch.randint(entries, (1 if shared else batch, kv_heads, parts, length), generator=generator).to(kind).mT
    expected = torch.zeros(batch, kv_heads, rows, length)
    for b in range(batch):
        for head in range(kv_heads):
            for key, code in enumerate(codes[0 if shared else b, head].long()):
                for part in range(parts):
                    expected[b, head, :, key] += tables[b, head, :, part, code[part]]
    for few, numbers in ((lookup.FEW_KEYS, 1), (-1, lookup.BLOCK_NUMBERS), (-1, 1)):
        monkeypatch.setattr(lookup, "FEW_KEYS", few)
        monkeypatch.setattr(lookup, "BLOCK_NUMBERS", numbers)
        assert torch.equal(lookup_sums(codes, tables), expected)
