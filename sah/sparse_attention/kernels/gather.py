"""Reading the rows of keys and values that lists name."""

from __future__ import annotations

import torch

from sah.sparse_attention.kernels.workspace import Workspace
from sah.sparse_attention.key_lists import keys_of_runs
from sah.sparse_attention.shared import SharedStates, States


def gather_rows(
    states: States, indices: torch.Tensor, run: int = 1, *, workspace: Workspace | None = None, name: str = "rows"
) -> torch.Tensor:
    """Read the rows of keys or values that each list names.

    Args:
        states: (batch, kv_heads, kv_len, dim).
        indices: (batch, lists, n), int64; lists is a multiple of kv_heads.
        run: Rows that an index stands for: i means i * run to i * run + run - 1.
        workspace: Where to take the result's memory from; None makes a new tensor.
        name: The buffer's name there.

    Returns:
        (batch, lists, n * run, dim), a copy, valid until the buffer is taken again.
    """
    if isinstance(states, SharedStates):
        return _gather_shared(states, keys_of_runs(indices, run), workspace, name)
    batch, lists, count = indices.shape
    kv_heads, dim = states.shape[1], states.shape[-1]
    strides = states.stride()
    width = dim * run
    grouped = indices.reshape(batch, kv_heads, -1)
    if strides[2] != dim or strides[3] != 1 or strides[0] % width or strides[1] % width:
        return _gather_anywhere(states, grouped, run).view(batch, lists, count * run, dim)
    # Rows lie whole in memory: one flat row selection is several times faster than a gather of single numbers.
    first = torch.arange(batch, device=states.device)[:, None, None] * (strides[0] // width) + torch.arange(
        kv_heads, device=states.device
    )[:, None] * (strides[1] // width)
    used = (batch - 1) * strides[0] + (kv_heads - 1) * strides[1] + states.shape[2] // run * width
    flat = states.as_strided((used // width, width), (width, 1))
    chosen = (grouped + first).flatten()
    if workspace is None:
        return flat.index_select(0, chosen).view(batch, lists, count * run, dim)
    out = workspace.take(name, (len(chosen), width), states.dtype, states.device)
    torch.index_select(flat, 0, chosen, out=out)
    return out.view(batch, lists, count * run, dim)


def _gather_shared(states: SharedStates, indices: torch.Tensor, workspace: Workspace | None, name: str) -> torch.Tensor:
    """Read rows of the context and of each row's own lane; indices (rows, lists, n)."""
    rows, lists, count = indices.shape
    kv_heads, length = states.context.shape[1:3]
    per_head = indices.reshape(rows, kv_heads, -1)
    in_context = per_head.clamp(max=max(length - 1, 0)).transpose(0, 1).reshape(1, kv_heads, -1)
    if length:
        found = gather_rows(states.context, in_context, workspace=workspace, name=name)
    else:
        found = states.context.new_empty(1, kv_heads, in_context.shape[-1], states.shape[3])
    found = found.view(kv_heads, rows, -1, states.shape[3])
    row, head, place = (per_head >= length).nonzero(as_tuple=True)
    if len(row):
        slots = per_head[row, head, place] - length
        found[head, row, place] = states.own[states.lanes[row], head, slots]
    return found.transpose(0, 1).reshape(rows, lists, count, states.shape[3])


def _gather_anywhere(states: torch.Tensor, indices: torch.Tensor, run: int) -> torch.Tensor:
    """Plain form for states of any layout; indices (batch, kv_heads, n)."""
    batches = torch.arange(states.shape[0], device=states.device)[:, None, None]
    heads = torch.arange(states.shape[1], device=states.device)[:, None]
    return states[batches, heads, keys_of_runs(indices, run)]
