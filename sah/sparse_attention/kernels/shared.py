"""Attention of rows that share a context: one matrix product over the context for all rows of a setting.

Plain twin: `SparseAttention.attend_lanes`, which takes the lanes one by one.
"""

from __future__ import annotations

import torch

from sah.sparse_attention.kernels.gather import gather_rows
from sah.sparse_attention.kernels.scores import attention_logits, cap_logits, group_size
from sah.sparse_attention.kernels.workspace import Workspace
from sah.sparse_attention.key_lists import KeyLists, Spans, keys_of_runs, to_heads
from sah.sparse_attention.mask import gather_last
from sah.sparse_attention.shared import SharedStates

WIDE_SHARE = 64
"""Lists of more keys than this part of all keys are weighed by a product with all values instead of being gathered."""


def piece_numbers(device: torch.device) -> int:
    """Return how many attention logits are held at once for the rows of a setting.

    On a CPU they and their temporaries should stay in its caches; other devices want large pieces.
    """
    return 1 << 19 if device.type == "cpu" else 1 << 24


def row_pieces(queries: torch.Tensor, keys: SharedStates) -> list[slice]:
    """Cut the rows of a call into pieces whose logits are bounded; rows whose logits are known stay together.

    Args:
        queries: (rows, heads, 1, head_dim).
        keys: (rows, kv_heads, kv_len, head_dim).

    Returns:
        Ranges of rows, in order.
    """
    rows, heads = queries.shape[:2]
    step = max(1, piece_numbers(queries.device) // (heads * keys.shape[2]))
    if keys.known.of(queries) is not None:
        step = rows
    return [slice(start, start + step) for start in range(0, rows, step)]


def call_logits(queries: torch.Tensor, keys: SharedStates, scaling: float) -> torch.Tensor:
    """Compute the logits of all keys, once for a call however many steps of its recipe ask for them.

    Args:
        queries: (rows, heads, 1, head_dim).
        keys: (rows, kv_heads, kv_len, head_dim).
        scaling: Factor of the dot products.

    Returns:
        Logits before any cap, (rows, heads, 1, kv_len), float32; not to be written to.
    """
    keys.known.ask()
    logits = keys.known.of(queries)
    if logits is None:
        logits = attention_logits(queries, keys, scaling)
        keys.known.put(queries, logits)
    return logits


def weigh(weights: torch.Tensor, values: SharedStates) -> torch.Tensor:
    """Sum values by their weights, or leave the weights for a product with those of other settings.

    Args:
        weights: (rows, heads, 1, kv_len), float32; not used again by the caller.
        values: (rows, kv_heads, kv_len, value_dim).

    Returns:
        (rows, heads, 1, value_dim), float32; zeros where the weights were left.
    """
    if values.deferred is None:
        return shared_output(weights, values)
    values.deferred.weights.copy_(weights.view(values.deferred.weights.shape))
    values.deferred.written = True
    return torch.zeros(*weights.shape[:3], values.shape[3], device=weights.device)


def shared_output(weights: torch.Tensor, values: SharedStates) -> torch.Tensor:
    """Sum values by their weights.

    Args:
        weights: (rows, heads, 1, kv_len), float32.
        values: (rows, kv_heads, kv_len, value_dim).

    Returns:
        (rows, heads, 1, value_dim), float32.
    """
    rows, heads, _, _ = weights.shape
    kv_heads = values.shape[1]
    return grouped_output(weights.view(rows, kv_heads, heads // kv_heads, -1), values).view(rows, heads, 1, -1)


def grouped_output(weights: torch.Tensor, values: SharedStates) -> torch.Tensor:
    """Sum values by their weights.

    Args:
        weights: (rows, kv_heads, heads / kv_heads, kv_len), float32; no copy of it is made where its KV heads lie
            apart in memory.
        values: (rows, kv_heads, kv_len, value_dim).

    Returns:
        (rows, kv_heads, heads / kv_heads, value_dim), float32.
    """
    rows, kv_heads, group, _ = weights.shape
    length = values.context_length
    # One matrix a KV head holds the weights of all rows over the context.
    over_context = weights[..., :length].transpose(0, 1).flatten(1, 2)
    output = (over_context @ values.context[0].float()).view(kv_heads, rows, group, -1).transpose(0, 1)
    if values.used:
        output = output + weights[..., length:] @ values.own_rows().float()
    return output.contiguous()


def attend_everything(
    queries: torch.Tensor,
    keys: SharedStates,
    values: SharedStates,
    scaling: float,
    *,
    window: int | None = None,
    sinks: torch.Tensor | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Attend to every key that a row may read, or to the last ones of them.

    Args:
        queries: (rows, heads, 1, head_dim).
        keys: (rows, kv_heads, kv_len, head_dim).
        values: (rows, kv_heads, kv_len, value_dim).
        scaling: Factor of the dot products.
        window: Last keys to read; None reads all.
        sinks: Learned sink logit of each head, (heads,), or None.
        softcap: The model's cap on its logits, or None.

    Returns:
        (rows, heads, 1, value_dim) in the queries' dtype.
    """
    weights = everything_weights(queries, keys, scaling, window=window, sinks=sinks, softcap=softcap)
    return weigh(weights, values).to(queries.dtype)


def everything_weights(
    queries: torch.Tensor,
    keys: SharedStates,
    scaling: float,
    *,
    window: int | None = None,
    sinks: torch.Tensor | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Return the weights of `attend_everything`, (rows, heads, 1, kv_len), float32; its arguments are the same."""
    logits = cap_logits(call_logits(queries, keys, scaling), softcap)
    allowed = keys.allowed()
    if window is not None:
        places = torch.arange(keys.shape[2], device=keys.device)
        allowed = allowed & (places >= (keys.lengths - window).unsqueeze(-1))[:, None, None]
    return _softmax(torch.where(allowed, logits, float("-inf")), sinks)


def attend_dense_mask(
    queries: torch.Tensor,
    keys: SharedStates,
    values: SharedStates,
    inclusion: torch.Tensor,
    scaling: float,
    *,
    sinks: torch.Tensor | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Attend over inclusion probabilities.

    Args:
        queries: (rows, heads, 1, head_dim).
        keys: (rows, kv_heads, kv_len, head_dim).
        values: (rows, kv_heads, kv_len, value_dim).
        inclusion: Inclusion probability of every key, 0 for those not kept or not allowed, broadcastable to
            (rows, heads, 1, kv_len); boolean where all that are kept are certain.
        scaling: Factor of the dot products.
        sinks: Learned sink logit of each head, (heads,), or None.
        softcap: The model's cap on its logits, or None.

    Returns:
        (rows, heads, 1, value_dim) in the queries' dtype.
    """
    logits = cap_logits(call_logits(queries, keys, scaling), softcap)
    return weigh(_softmax(_surprised(logits, inclusion), sinks), values).to(queries.dtype)


def attend_shared_lists(
    queries: torch.Tensor,
    keys: SharedStates,
    values: SharedStates,
    spans: Spans,
    lists: tuple[KeyLists, ...],
    scaling: float,
    workspace: Workspace,
    *,
    sinks: torch.Tensor | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Attend over ranges of the context and lists.

    Args:
        queries: (rows, heads, 1, head_dim).
        keys: (rows, kv_heads, kv_len, head_dim).
        values: (rows, kv_heads, kv_len, value_dim).
        spans: Ranges of the context that all rows read.
        lists: Further keys, none of them twice.
        scaling: Factor of the dot products.
        workspace: Buffers for gathered rows.
        sinks: Learned sink logit of each head, (heads,), or None.
        softcap: The model's cap on its logits, or None.

    Returns:
        (rows, heads, 1, value_dim) in the queries' dtype.
    """
    rows, heads = queries.shape[:2]
    kv_heads, kv_len = keys.shape[1:3]
    singles = [KeyLists(keys_of_runs(part.indices, part.run), part.probabilities, part.logits) for part in lists]
    wide = any(reads_widely(part.indices, queries, keys) for part in singles)
    # Where all logits are there or will be, ranges are cut out of them.
    every = call_logits(queries, keys, scaling) if wide or keys.known.asked else None
    logits = [
        attention_logits(queries, keys.of_context(a, b), scaling) if every is None else every[..., a:b]
        for a, b in spans
    ]
    for part in singles:
        found = part.logits
        if found is None and every is not None:
            found = gather_last(every, to_heads(part.indices, heads))
        elif found is None:
            found = _listed_logits(queries, keys, part.indices, scaling, workspace)
        logits.append(found)
    capped = [cap_logits(piece, softcap) for piece in logits]
    for number, part in enumerate(singles, start=len(spans)):
        if part.probabilities is not None:
            capped[number] = _surprised(capped[number], to_heads(part.probabilities, heads))
    weights = _softmax(torch.cat([piece.expand(rows, heads, 1, -1) for piece in capped], dim=-1), sinks)
    pieces = list(torch.split(weights, [piece.shape[-1] for piece in capped], dim=-1))
    if wide:
        whole = torch.zeros(rows, heads, 1, kv_len, device=queries.device)
        for (a, b), mine in zip(spans, pieces, strict=False):
            whole[..., a:b] = mine
        for part, mine in zip(singles, pieces[len(spans) :], strict=True):
            whole.scatter_add_(-1, to_heads(part.indices, heads).expand_as(mine), mine)
        return weigh(whole, values).to(queries.dtype)
    output = torch.zeros(rows, heads, 1, values.shape[3], device=queries.device)
    for (a, b), mine in zip(spans, pieces, strict=False):
        output += shared_output(mine, values.of_context(a, b))
    for part, mine in zip(singles, pieces[len(spans) :], strict=True):
        output += _listed_output(mine, values, part.indices, kv_heads, workspace)
    return output.to(queries.dtype)


def reads_widely(indices: torch.Tensor, queries: torch.Tensor, keys: SharedStates) -> bool:
    """Tell whether lists, (rows or 1, lists, 1, n), are better read by products over all keys than key by key."""
    return indices.shape[1] * indices.shape[3] * WIDE_SHARE > queries.shape[1] * keys.shape[2]


def _surprised(logits: torch.Tensor, inclusion: torch.Tensor) -> torch.Tensor:
    """Divide each exponential by its key's inclusion probability: exp(l) / p is exp(l - log p), and 0 for p of 0."""
    if inclusion.dtype == torch.bool:
        return torch.where(inclusion, logits, float("-inf"))
    kept = inclusion > 0
    if not bool((inclusion == kept).all()):
        logits = logits - inclusion.masked_fill(~kept, 1.0).log()
    return torch.where(kept, logits, float("-inf"))


def _softmax(logits: torch.Tensor, sinks: torch.Tensor | None) -> torch.Tensor:
    if sinks is None:
        return torch.softmax(logits, dim=-1)
    sink = sinks.float().view(1, -1, 1, 1).expand(*logits.shape[:-1], 1)
    return torch.softmax(torch.cat([logits, sink], dim=-1), dim=-1)[..., :-1]


def _rows_of_lists(indices: torch.Tensor, rows: int, kv_heads: int) -> torch.Tensor:
    """Bring indices (rows or 1, lists, 1, n) into the form (rows, kv_heads or heads, n)."""
    lists = indices.squeeze(2).expand(rows, -1, -1)
    return lists.expand(-1, kv_heads, -1) if lists.shape[1] == 1 else lists


def _listed_logits(
    queries: torch.Tensor, keys: SharedStates, indices: torch.Tensor, scaling: float, workspace: Workspace
) -> torch.Tensor:
    """Compute the logits of listed keys, (rows, heads, 1, n), by reading them alone."""
    chosen = _rows_of_lists(indices, len(queries), keys.shape[1])
    return attention_logits(queries, gather_rows(keys, chosen, workspace=workspace), scaling)


def _listed_output(
    weights: torch.Tensor, values: SharedStates, indices: torch.Tensor, kv_heads: int, workspace: Workspace
) -> torch.Tensor:
    """Sum listed values by their weights (rows, heads, 1, n), reading them alone."""
    chosen = _rows_of_lists(indices, len(weights), kv_heads)
    gathered = gather_rows(values, chosen, workspace=workspace).float()
    group = group_size(weights, gathered)
    grouped = weights.view(len(weights), chosen.shape[1], group, -1)
    return (grouped @ gathered).view(*weights.shape[:3], -1)
