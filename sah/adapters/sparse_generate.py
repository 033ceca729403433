"""What transformers' own `generate` needs for sparse attention: checks, and the question's state in every call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from sah.adapters.attention_switch import META_DATA_KEY
from sah.errors import ConfigError


def check_options(batch: int, options: Any, given: Mapping[str, Any]) -> None:
    """Refuse ways of generating that a state of one growing sequence cannot follow.

    Args:
        batch: Prompts.
        options: The generation config.
        given: What the call says beside it.

    Raises:
        ConfigError: For beams, a batch, or a way of decoding that takes tokens back.
    """
    several = [given.get(name, getattr(options, name, None)) for name in ("num_beams", "num_return_sequences")]
    if batch != 1 or any((number or 1) != 1 for number in several):
        raise ConfigError(
            "Sparse generation keeps the state of one sequence, but a batch, beams or several return sequences "
            "were asked for. Call it once for each prompt, with num_beams=1 and num_return_sequences=1."
        )
    for name in ("prompt_lookup_num_tokens", "assistant_model"):
        if given.get(name, getattr(options, name, None)) is not None:
            raise ConfigError(
                f"Sparse generation keeps a state that only grows, but {name} takes guessed tokens back. "
                f"Leave {name} out."
            )


@contextmanager
def meta_data_in_every_call(
    model: Any, meta_data: dict[Any, Any], dense_first: Callable[[], AbstractContextManager[None]] | None
) -> Iterator[list[int]]:
    """Give every call of a model the state of one question.

    `generate` refuses keyword arguments that it does not know, so they join at the model's door.

    Args:
        model: The model.
        meta_data: The state.
        dense_first: Switches to dense attention for the first call; None runs it like the others.

    Yields:
        A list that holds the number of calls so far.
    """
    calls = [0]
    question = ExitStack()

    def pass_on(_: Any, args: Any, call: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        calls[0] += 1
        if calls[0] == 1 and dense_first is not None:
            question.enter_context(dense_first())
            return args, call
        question.close()
        return args, {**call, META_DATA_KEY: meta_data}

    hook = model.register_forward_pre_hook(pass_on, with_kwargs=True)
    try:
        yield calls
    finally:
        hook.remove()
        question.close()
