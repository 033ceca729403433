"""Tells where a model's numbers stop being finite: a NaN must never look like a wrong answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from sah.errors import ModelError

FINITE_KEY = "finite"
"""Key of `sparse_meta_data` under which a run puts its `FiniteWatch`."""


class FiniteWatch:
    """Remembers the attention outputs of one model call that were not finite.

    Only flags are kept, and they are read when the logits turn out not to be finite: watching never waits for a device.
    """

    def __init__(self) -> None:
        self._layers: list[tuple[int, torch.Tensor, torch.Tensor]] = []

    def begin(self) -> None:
        """Forget the last call."""
        self._layers.clear()

    def see(self, layer_idx: int, queries: torch.Tensor, output: torch.Tensor) -> None:
        """Note one layer.

        Args:
            layer_idx: The layer.
            queries: (rows, heads, head_dim).
            output: Its attention's, (rows, heads, value_dim).
        """
        self._layers.append((layer_idx, torch.isfinite(queries).all(-1), torch.isfinite(output).all(-1)))

    def where(self, rows: slice) -> tuple[int, str]:
        """Find where numbers first were not finite.

        Args:
            rows: Rows of one lane.

        Returns:
            The first row at fault, counted from the start of `rows` (later layers may spread it to earlier ones), and
            in words the layer and heads.
        """
        for layer_idx, finite_in, finite_out in self._layers:
            bad = (~finite_in[rows]).any(-1)
            if bool(bad.any()):
                told = f"the queries of layer {layer_idx} are not finite: it arose before that layer's attention"
                return int(bad.nonzero()[0]), told
            bad = (~finite_out[rows]).any(-1)
            if bool(bad.any()):
                heads = (~finite_out[rows]).any(0).nonzero().flatten().tolist()
                named = f"head {heads[0]}" if len(heads) == 1 else f"heads {', '.join(map(str, heads))}"
                told = f"it first shows in the attention output of layer {layer_idx}, {named}"
                return int(bad.nonzero()[0]), told
        return 0, "the attention outputs of all layers are finite: it arose behind them"


def usable(logits: torch.Tensor) -> torch.Tensor:
    """Tell of each row of logits, (rows, vocabulary), whether it holds no NaN and no positive infinity, (rows,).

    Negative infinity excludes a token, which models may do on purpose.
    """
    return ~(torch.isnan(logits) | torch.isposinf(logits)).any(-1)


def not_finite(step: int, where: str) -> ModelError:
    """Build the error of logits that are not finite.

    Args:
        step: Number of the answer's token that they were for, from 0 (the question's call).
        where: Where numbers first were not finite.
    """
    return ModelError(
        f"The logits of step {step} (0 is the question) are NaN or infinite: {where}. There is no answer to score. Try "
        "another type of weights (++model.model_kwargs.dtype=float32), or report the masker that does so."
    )


def first_broken_layer(model: Any, ids: Sequence[int], position: int, past: Any) -> str:
    """Find the layer in which a model's own attention breaks down, by running the tokens once more.

    Args:
        model: A causal language model of transformers, in the attention that is to be looked into.
        ids: All tokens behind the cache's.
        position: Position of the first one.
        past: The cache; the caller cuts it back.
    """
    device = model.get_input_embeddings().weight.device
    states = model(
        input_ids=torch.tensor([list(ids)], device=device),
        position_ids=torch.arange(position, position + len(ids), device=device)[None],
        past_key_values=past,
        use_cache=True,
        logits_to_keep=1,
        output_hidden_states=True,
    ).hidden_states
    for number, state in enumerate(states):
        if not bool(torch.isfinite(state).all()):
            place = "the embeddings" if number == 0 else f"the output of layer {number - 1}"
            return f"it first shows in {place} (of the model's own attention heads are not looked into)"
    return "the outputs of all layers are finite: it arose in the output layer"
