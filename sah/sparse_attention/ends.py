"""First and last keys of rows that share a context but differ in length, as ranges of the context and lists."""

from __future__ import annotations

import torch

from sah.sparse_attention.key_lists import KeyLists, Spans, union_of_spans
from sah.sparse_attention.mask import Mask


def add_ends(previous: Mask, first: torch.Tensor, last: torch.Tensor, lengths: torch.Tensor, common: int) -> Mask:
    """Add some first and some last keys of every row.

    Args:
        previous: What is kept already.
        first: How many first keys each row keeps, (rows,), int64.
        last: How many last keys, (rows,), int64.
        lengths: Keys that each row may read, (rows,), int64.
        common: Keys that all rows share, from the first one on.

    Returns:
        The union. What all rows keep of the common keys is held as ranges.
    """
    first = first.clamp(max=lengths)
    start = torch.maximum(lengths - last, first)
    head = min(int(first.min()), common)
    tail = max(min(int(start.max()), common), head)
    spans = ((0, head), (tail, common))
    behind = max(head, common)
    # What is left of each row: its longer head, its window before the common tail, and its keys behind the context.
    ranges = (
        (torch.full_like(first, head), first.clamp(max=tail)),
        (start.clamp(max=tail), torch.full_like(first, tail)),
        (torch.full_like(first, behind), first.clamp(min=behind)),
        (start.clamp(min=behind), lengths),
    )
    simple = previous.has_indices and not previous.lists
    taken = previous.spans if simple else ()
    lists = _lists(ranges, taken)
    whole = union_of_spans((*previous.spans, *spans) if simple else spans)
    mask = Mask(previous.shape, previous.device, spans=whole, lists=lists)
    return mask if simple else previous.merge(mask)


def _lists(ranges: tuple[tuple[torch.Tensor, torch.Tensor], ...], taken: Spans) -> tuple[KeyLists, ...]:
    """Write ranges (start, stop) of every row out as at most one list, without the keys of `taken`."""
    places, used = [], []
    for start, stop in ranges:
        width = int((stop - start).max()) if len(start) else 0
        if width > 0:
            place = start.unsqueeze(-1) + torch.arange(width, device=start.device)
            used.append(place < stop.unsqueeze(-1))
            places.append(torch.where(used[-1], place, 0))
    if not places:
        return ()
    indices, counts = torch.cat(places, dim=-1), torch.cat(used, dim=-1)
    for a, b in taken:
        counts = counts & ((indices < a) | (indices >= b))
    if not bool(counts.any()):
        return ()
    probabilities = None if bool(counts.all()) else counts.float()[:, None, None]
    return (KeyLists(indices[:, None, None], probabilities),)
