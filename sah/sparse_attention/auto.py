"""`AutoAttention`: the efficient execution of a recipe, except where only the plain one will do."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import torch

from sah.sparse_attention.base import SparseAttention
from sah.sparse_attention.config import MaskedAttentionConfig
from sah.sparse_attention.efficient import EfficientAttention
from sah.sparse_attention.lanes import LaneStates
from sah.sparse_attention.maskers.base import ResearchMasker
from sah.sparse_attention.observe import Last
from sah.sparse_attention.research import ResearchAttention
from sah.sparse_attention.shared import SharedStates


class AutoAttention(SparseAttention):
    """Chooses between both executions of one recipe, call by call.

    `ResearchAttention` takes calls that need gradients and calls whose attention weights are asked for;
    `EfficientAttention`, which promises neither, takes all others.

    Args:
        config: The recipe and the seed.

    Raises:
        ConfigError: If the recipe cannot be run.
    """

    def __init__(self, config: MaskedAttentionConfig) -> None:
        self.config = config
        self.research = ResearchAttention(config)
        self.efficient = EfficientAttention(config)

    @property
    def maskers(self) -> list[ResearchMasker]:
        """The recipe's maskers, as the efficient execution holds them."""
        return self.efficient.maskers

    def prepare_context(
        self,
        context_state: MutableMapping[Any, Any],
        layer_idx: int,
        keys: torch.Tensor,
        values: torch.Tensor | None = None,
    ) -> None:
        """Derive what the recipe needs of a context; see `SparseAttention.prepare_context`."""
        self.efficient.prepare_context(context_state, layer_idx, keys, values)

    def observed(self, layer_idx: int, *, question: bool = False) -> frozenset[Last]:
        """Tell what must be seen of tokens that run dense; see `SparseAttention.observed`."""
        return self.efficient.observed(layer_idx, question=question)

    def attend_lanes(
        self,
        module: torch.nn.Module | None,
        queries: torch.Tensor,
        keys: SharedStates,
        values: SharedStates,
        scaling: float,
        states: LaneStates,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Compute attention for rows of several lanes; see `SparseAttention.attend_lanes`."""
        return self.efficient.attend_lanes(module, queries, keys, values, scaling, states, **kwargs)

    def custom_attention(
        self,
        module: torch.nn.Module | None,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float,
        dropout: float,
        sparse_meta_data: dict[Any, Any],
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Compute attention in the execution that the call needs; see `SparseAttention.custom_attention`.

        A true `output_attentions` among the keyword arguments asks for the weights.

        Raises:
            ConfigError: If a query that may read keys keeps none.
        """
        gradients = torch.is_grad_enabled() and any(x.requires_grad for x in (queries, keys, values))
        chosen = self.research if gradients or kwargs.get("output_attentions") else self.efficient
        return chosen.custom_attention(
            module, queries, keys, values, attention_mask, scaling, dropout, sparse_meta_data, **kwargs
        )


def every_masker(sparse_attention: SparseAttention) -> list[Any]:
    """List the maskers of all executions that an attention may take, which each have their own; none if it has none."""
    executions: list[Any] = [sparse_attention]
    if isinstance(sparse_attention, AutoAttention):
        executions = [sparse_attention.research, sparse_attention.efficient]
    return [masker for execution in executions for masker in getattr(execution, "maskers", ())]
