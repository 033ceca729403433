"""Choosing whole pages of keys up to a budget, without building anything of size kv_len."""

from __future__ import annotations

import torch

from sah.sparse_attention.key_lists import KeyLists
from sah.sparse_attention.mask import Mask


def choose_pages(
    scores: torch.Tensor, page_size: int, previous: Mask, add: torch.Tensor, lengths: torch.Tensor
) -> list[KeyLists]:
    """Choose the pages with the largest scores, as many as a budget holds; the last one in part if need be.

    Args:
        scores: (batch, lists, pages), one list for a query head or a KV head; not changed.
        page_size: Keys of a page; the last page may be incomplete.
        previous: What is kept already, in list form; it costs nothing and is not chosen again.
        add: Keys to choose, int64, broadcastable to (batch, lists); no more than are left.
        lengths: Keys that each row may read, from the first one on, (batch or 1,), int64.

    Returns:
        A list of whole pages (`run` is the page size), and one of single keys for pages that are read in part, earlier
        keys first; either may be missing.
    """
    batch, lists, pages = scores.shape
    room = _room(previous, lists, pages, page_size, lengths)
    add = add.expand(batch, lists)
    partial = ((room > 0) & (room < page_size)).sum(-1).amax()
    most = min(pages, -(-int(add.max()) // page_size) + int(partial))
    scores = scores.masked_fill(room == 0, float("-inf"))
    order = scores.topk(most, dim=-1).indices
    room = room.expand(batch, lists, -1).gather(-1, order)
    take = torch.minimum((add.unsqueeze(-1) - (room.cumsum(-1) - room)).clamp(min=0), room)
    # Whole pages first, then those read in part; where rows differ in number, the surplus is read key by key.
    kind = (take < page_size).long() + (take == 0).long()
    order_of_kind = kind.argsort(dim=-1, stable=True)
    order, take = order.gather(-1, order_of_kind), take.gather(-1, order_of_kind)
    whole = int((take == page_size).sum(-1).min())
    used = int((take > 0).sum(-1).max())
    found = [KeyLists(order[..., :whole].unsqueeze(2), run=page_size)] if whole else []
    if used > whole:
        found.append(_single_keys(order[..., whole:used], take[..., whole:used], page_size, lengths, previous))
    return found


def _room(previous: Mask, lists: int, pages: int, page_size: int, lengths: torch.Tensor) -> torch.Tensor:
    """Count the keys of each page that are not kept, (batch or 1, lists or 1, pages)."""
    device = lengths.device
    start = torch.arange(pages, device=device) * page_size
    stop = torch.minimum(start + page_size, lengths.view(-1, 1, 1))
    room = (stop - start).clamp(min=0)
    # Ranges and lists hold only keys that the row may read.
    for first, last in previous.spans:
        room = room - (stop.clamp(max=last) - start.clamp(min=first)).clamp(min=0)
    for part in previous.lists:
        indices, probabilities = part.of_single_keys(lists)
        kept = torch.zeros(*indices.shape[:2], pages, dtype=torch.long, device=device)
        room = room - kept.scatter_add_(-1, indices.squeeze(2) // page_size, (probabilities.squeeze(2) > 0).long())
    return room


def _single_keys(
    order: torch.Tensor, take: torch.Tensor, page_size: int, lengths: torch.Tensor, previous: Mask
) -> KeyLists:
    """Name the first `take` keys of each page that are not kept; order and take are (batch, lists, n)."""
    keys = order.unsqueeze(-1) * page_size + torch.arange(page_size, device=order.device)
    kv_len = previous.shape[3]
    free = keys < lengths.view(-1, 1, 1, 1)
    keys = keys.clamp(max=kv_len - 1)
    for first, last in previous.spans:
        free = free & ((keys < first) | (keys >= last))
    for part in previous.lists:
        indices, probabilities = part.of_single_keys(order.shape[1])
        kept = torch.zeros(*indices.shape[:2], kv_len, device=order.device)
        kept = kept.scatter_reduce(-1, indices.squeeze(2), probabilities.squeeze(2), reduce="amax")
        kept = kept.expand(*order.shape[:2], -1).gather(-1, keys.flatten(2)).view_as(keys)
        free = free & (kept == 0)
    chosen = free & (free.long().cumsum(-1) <= take.unsqueeze(-1))
    return KeyLists(keys.flatten(2).unsqueeze(2), chosen.flatten(2).unsqueeze(2).float())
