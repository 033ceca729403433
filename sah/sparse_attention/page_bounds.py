"""Upper bounds of the scores of a page's keys, for chunks of queries: the plain form and its fast twin.

A bound is sum_d max(q_d min_d, q_d max_d) over the smallest and largest entry of each channel among those keys of the
page that the query may read (Quest, arXiv 2406.10774).
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from sah.sparse_attention.kernels.scores import group_size
from sah.sparse_attention.key_lists import to_heads

Pack = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Joins largest and smallest entries, (..., head_dim) each, to (..., 2 * head_dim), rounding them if asked to."""


EXTREMES = ((float("-inf"), "amax"), (float("inf"), "amin"))
"""How the largest and the smallest entries are found: what stands where there is no key, and the reduction."""


def rank_of_key(allowed: torch.Tensor) -> torch.Tensor:
    """Count keys from the first one that any query may read, so that padding moves no page.

    Args:
        allowed: Boolean, (batch, heads or 1, q_len, kv_len).

    Returns:
        int64, (batch, kv_len), 0 for the first key. A key's page is its rank divided by the page size.
    """
    seen = allowed.any(dim=1).any(dim=1)
    return (seen.long().cumsum(-1) - 1).clamp(min=0)


def split_signs(queries: torch.Tensor) -> torch.Tensor:
    """Split queries so that a bound is one dot product with a page's largest and smallest entries.

    Args:
        queries: (..., head_dim).

    Returns:
        Positive parts, which meet the largest entries, then negative ones, (..., 2 * head_dim), float32.
    """
    return torch.cat([queries.clamp(min=0), queries.clamp(max=0)], dim=-1).float()


def bounds_of_chunk(
    queries: torch.Tensor, keys: torch.Tensor, allowed: torch.Tensor, scaling: float, page_size: int, pack: Pack
) -> torch.Tensor:
    """Bound the scores of every page for every query, query by query.

    Args:
        queries: (batch, heads, q_len, head_dim).
        keys: (batch, kv_heads, kv_len, head_dim).
        allowed: Boolean, (batch or 1, heads or 1, q_len, kv_len).
        scaling: Factor of the dot products.
        page_size: Keys of a page.
        pack: Joins the entries.

    Returns:
        (batch, heads, q_len, pages), float32; minus infinity where a query may read no key of a page.
    """
    page = rank_of_key(allowed).expand(keys.shape[0], -1) // page_size
    columns = []
    for row in range(queries.shape[2]):
        readable = allowed[:, :, row].any(dim=1)
        largest, smallest, there = _ends(keys, page, readable)
        high, low = to_heads(pack(largest, smallest).float(), queries.shape[1]).chunk(2, dim=-1)
        query = queries[:, :, row, None].float() * scaling
        bounds = torch.maximum(query * high, query * low).sum(-1)
        columns.append(bounds.masked_fill(~there.unsqueeze(1), float("-inf")))
    return torch.stack(columns, dim=2)


def fast_bounds_of_chunk(
    queries: torch.Tensor, keys: torch.Tensor, allowed: torch.Tensor, scaling: float, page_size: int, pack: Pack
) -> torch.Tensor:
    """Do the same at once: pages that all queries read alike by one matrix product, the last ones query by query.

    Arguments and result are those of `bounds_of_chunk`, its plain twin.
    """
    batch, heads, q_len, head_dim = queries.shape
    kv_heads, group = keys.shape[1], group_size(queries, keys)
    page = rank_of_key(allowed).expand(batch, -1) // page_size
    readable = allowed.any(dim=1).expand(batch, -1, -1)
    common = readable.all(dim=1)
    some = (readable.any(dim=1) & ~common).any(dim=0).nonzero().squeeze(-1)
    largest, smallest, there = _ends(keys, page, common)
    pages = largest.shape[2]
    first = int(page[:, some].min()) if len(some) else pages
    split = split_signs(queries.float() * scaling).view(batch, kv_heads, group, q_len, 2 * head_dim)
    head = pack(largest[:, :, :first], smallest[:, :, :first]).float()
    bounds = (split.flatten(2, 3) @ head.mT).view(batch, heads, q_len, first)
    bounds = bounds.masked_fill(~there[:, None, None, :first], float("-inf"))
    if first == pages:
        return bounds
    # The other pages, for every query apart: (batch, kv_heads, q_len, pages - first, head_dim).
    tail = [t[:, :, None, first:].expand(-1, -1, q_len, -1, -1) for t in (largest, smallest)]
    read = readable[:, None, :, some, None]
    extra = keys[:, :, None, some].expand(-1, -1, q_len, -1, -1)
    place = (page[:, some] - first).clamp(min=0)[:, None, None, :, None].expand_as(extra)
    there_tail = there[:, None, first:].expand(-1, q_len, -1)
    found = torch.zeros(batch, q_len, pages - first, device=keys.device)
    found = found.scatter_reduce(2, place[:, 0, ..., 0], read[:, 0, ..., 0].float(), reduce="amax") > 0
    there_tail = there_tail | found
    ends = []
    for end, (empty, reduce) in zip(tail, EXTREMES, strict=True):
        ground = end.masked_fill(~there[:, None, None, first:, None], empty)
        end = ground.scatter_reduce(3, place, extra.masked_fill(~read, empty), reduce=reduce)
        ends.append(end.masked_fill(~there_tail[:, None, ..., None], 0.0))
    packed = pack(*ends).float()
    last = split.transpose(2, 3) @ packed.mT
    last = last.transpose(2, 3).reshape(batch, heads, q_len, pages - first)
    return torch.cat([bounds, last.masked_fill(~there_tail[:, None], float("-inf"))], dim=-1)


def ends_so_far(tail: torch.Tensor, own: torch.Tensor, page_size: int) -> torch.Tensor:
    """Return for each key behind a context the extremes of its page's keys up to it.

    Args:
        tail: The context's keys behind its last complete page, (1, kv_heads, rest, head_dim).
        own: Keys behind the context, (lanes, kv_heads, n, head_dim).
        page_size: Keys of a page.

    Returns:
        (lanes, kv_heads, n, 2 * head_dim): largest entries, then smallest.
    """
    lanes, kv_heads, count, head_dim = own.shape
    rest = tail.shape[2]
    keys = torch.cat([tail.expand(lanes, -1, -1, -1), own], dim=2)
    missing = -keys.shape[2] % page_size
    pages = torch.nn.functional.pad(keys, (0, 0, 0, missing)).view(lanes, kv_heads, -1, page_size, head_dim)
    ends = torch.cat([pages.cummax(3).values, pages.cummin(3).values], dim=-1)
    return ends.flatten(2, 3)[:, :, rest : rest + count]


def _ends(
    keys: torch.Tensor, page: torch.Tensor, readable: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the largest and smallest entries of each page, 0 where it has no key, and whether it has one.

    Args:
        keys: (batch, kv_heads, kv_len, head_dim).
        page: Page of each key, (batch, kv_len).
        readable: Keys that count, boolean, (batch or 1, kv_len).

    Returns:
        (batch, kv_heads, pages, head_dim) twice, and boolean (batch, pages).
    """
    pages = int(page.max()) + 1
    place = page[:, None, :, None].expand_as(keys)
    readable = readable.expand(keys.shape[0], -1)
    there = torch.zeros(keys.shape[0], pages, device=keys.device)
    there = there.scatter_reduce(1, page, readable.float(), reduce="amax") > 0
    ends = []
    for empty, reduce in EXTREMES:
        ground = keys.new_full((*keys.shape[:2], pages, keys.shape[3]), empty)
        end = ground.scatter_reduce(2, place, keys.masked_fill(~readable[:, None, :, None], empty), reduce=reduce)
        ends.append(end.masked_fill(~there[:, None, :, None], 0.0))
    return ends[0], ends[1], there
