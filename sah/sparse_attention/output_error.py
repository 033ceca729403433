"""How far the output of sparse attention is from that of dense attention on the same inputs."""

from __future__ import annotations

from typing import Any

import torch

from sah.config.values import check_share
from sah.sparse_attention.kernels.masked import masked_attention
from sah.sparse_attention.randomness import generator_for

OUTPUT_ERROR_KEY = "output_error"
"""Key of `sparse_meta_data` under which a run puts its `OutputError`."""


class OutputError:
    """Samples attention calls and keeps each head's relative output error.

    The error of a head is the Euclidean norm of sparse minus dense output divided by the norm of the dense output, both
    of the same layer inputs, in float32.

    Args:
        rate: Share of calls to look at, 0 to 1.
        seed: Seed of the choice of calls, which depends on nothing that is computed.
        lane: Identity of the question, so that questions differ in the calls that are looked at.

    Raises:
        ConfigError: If the rate is no share.
    """

    def __init__(self, rate: float, seed: int = 0, lane: str = "") -> None:
        self.rate = check_share("attention_error", rate, or_zero=True)
        self._choices = generator_for("output_error", seed, lane)
        self._errors: dict[int, list[torch.Tensor]] = {}

    def wants_next(self) -> bool:
        """Decide whether the call at hand is looked at."""
        return bool(torch.rand((), generator=self._choices) < self.rate)

    def add(self, layer_idx: int, sparse: torch.Tensor, dense: torch.Tensor) -> None:
        """Add one call.

        Args:
            layer_idx: The layer.
            sparse: (batch, q_len, heads, value_dim).
            dense: Same shape.
        """
        difference = (sparse.float() - dense.float()).norm(dim=-1)
        error = difference / dense.float().norm(dim=-1).clamp(min=1e-20)
        self._errors.setdefault(layer_idx, []).append(error.flatten(0, 1).cpu())

    def by_layer(self) -> dict[int, torch.Tensor]:
        """Return the mean error of each head, (heads,), of every layer that was looked at."""
        return {layer: torch.cat(errors).mean(0) for layer, errors in sorted(self._errors.items())}

    def mean(self) -> float | None:
        """Return the mean over layers, heads and queries; None if no call was looked at."""
        every = [torch.cat(errors).flatten() for errors in self._errors.values()]
        return float(torch.cat(every).mean()) if every else None


def observe_error(
    sparse_meta_data: dict[Any, Any],
    output: torch.Tensor,
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    allowed: torch.Tensor,
    scaling: float,
    **kwargs: Any,
) -> None:
    """Compare one call with dense attention, where the run asked for it and the call is among those looked at.

    Queries that may read no key (padding) are left out.

    Args:
        sparse_meta_data: State of the question at hand.
        output: Of the sparse attention, (batch, q_len, heads, value_dim).
        queries: (batch, heads, q_len, head_dim).
        keys: (batch, kv_heads, kv_len, head_dim).
        values: (batch, kv_heads, kv_len, value_dim).
        allowed: Boolean, broadcastable to (batch, heads, q_len, kv_len).
        scaling: Factor of the dot products.
        **kwargs: `layer_idx`, `s_aux`, `softcap`.
    """
    recorder = sparse_meta_data.get(OUTPUT_ERROR_KEY)
    if not isinstance(recorder, OutputError) or not recorder.wants_next():
        return
    dense, _ = masked_attention(
        queries, keys, values, allowed.float(), scaling, sinks=kwargs.get("s_aux"), softcap=kwargs.get("softcap")
    )
    # A padded query reads nothing in either form; it would count as one without an error.
    reads = allowed.any(-1).any(1).expand(len(queries), -1)
    if bool(reads.any()):
        recorder.add(kwargs["layer_idx"], output[reads][None], dense.transpose(1, 2)[reads][None])
