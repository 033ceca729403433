"""Settings of the needle-in-a-haystack task. Imports nothing heavy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from sah.config.values import check_count
from sah.data.config import DatasetConfig
from sah.errors import ConfigError, bad_value

TASKS = {"single": (1, 1), "multikey": (4, 1), "multiquery": (4, 4)}
"""Task to RULER's number of needles hidden and number of needles asked for."""
NEEDLES = ("number", "word")
GENERATOR_VERSION = 1
"""Raised whenever the same settings begin to give other examples."""
HAYSTACKS = ("noise", "essays", "prose")


@dataclass
class NiahConfig(DatasetConfig):
    """Needles hidden in a long text, and a question that asks for one or several of them.

    Wording, needles and defaults follow RULER (arXiv 2404.06654; scripts/data/synthetic of NVIDIA/RULER).
    README.md in this folder tells where this differs and what to mind.

    Attributes:
        num_examples: How many examples to generate. Example i is the same whatever this says.
        task: `single` hides one needle; `multikey` hides several and asks for one; `multiquery` asks for
            several in one question.
        needle: What is hidden: a seven-digit `number` or a `word` (adjective-noun).
        haystack: `noise` (RULER's repeated sentences), `essays` (Paul Graham's, fetched on first use) or
            `prose` (the Python language reference that ships with the standard library).
        length: Tokens of the whole templated prompt, answer prefix included, counted with the model's own
            tokenizer. Prompts fill 90 to 100 % of it.
        depths: Where the asked needle lies, 0 (start of the haystack) to 1 (its end): a list, or a count of
            evenly spaced depths. Example i takes depth i modulo their number.
        num_keys: Needles hidden; None for the task's own number (1, 4, 4).
        num_queries: Needles asked for; None for the task's own number (1, 1, 4).
        seed: Decides needles, positions of the other needles, and where in the text a haystack starts.
        max_new_tokens: Limit of answer tokens a question, None to leave it to the run.
    """

    name: ClassVar[str] = "niah"
    loader: ClassVar[str] = "sah.data.niah.generate.generate_examples"

    num_examples: int | None = 8
    task: str = "single"
    needle: str = "number"
    haystack: str = "noise"
    length: int = 1024
    depths: Any = 8
    num_keys: int | None = None
    num_queries: int | None = None
    seed: int = 0
    max_new_tokens: int | None = 16
    metrics: list[str] = field(default_factory=lambda: ["string_match_all"])

    def validate(self) -> None:
        """Check all fields.

        Raises:
            ConfigError: If a value, or a combination of values, cannot be used.
        """
        super().validate()
        if self.num_examples is None:
            raise bad_value("dataset.num_examples", None, "a whole number of at least 1", "dataset.num_examples=8")
        for key, value, allowed in (
            ("task", self.task, tuple(TASKS)),
            ("needle", self.needle, NEEDLES),
            ("haystack", self.haystack, HAYSTACKS),
        ):
            if value not in allowed:
                raise bad_value(f"dataset.{key}", value, ", ".join(allowed), f"dataset.{key}={allowed[0]}")
        check_count("dataset.length", self.length, minimum=1)
        check_count("dataset.seed", self.seed)
        if self.max_new_tokens is not None:
            check_count("dataset.max_new_tokens", self.max_new_tokens, minimum=1)
        resolve_depths(self.depths)
        self._check_counts()

    def _check_counts(self) -> None:
        """Check the numbers of needles hidden and asked for against the task."""
        for key in ("num_keys", "num_queries"):
            if getattr(self, key) is not None:
                check_count(f"dataset.{key}", getattr(self, key), minimum=1)
        keys, queries = self.needle_counts()
        if self.task == "single" and (keys, queries) != (1, 1):
            raise ConfigError(
                f"dataset.task=single hides one needle and asks for it, but num_keys={keys} and "
                f"num_queries={queries}. "
                "Write dataset.task=multikey for more keys, dataset.task=multiquery for more queries, or "
                "leave both null."
            )
        if self.task == "multikey" and (keys < 2 or queries != 1):
            raise ConfigError(
                f"dataset.task=multikey hides at least two needles and asks for one, but num_keys={keys} and "
                f"num_queries={queries}. Write for example: dataset.num_keys=4 dataset.num_queries=null"
            )
        if self.task == "multiquery" and not 2 <= queries <= keys:
            raise ConfigError(
                f"dataset.task=multiquery asks for at least two needles and at most the hidden ones, but "
                f"num_keys={keys} and num_queries={queries}. Write for example: dataset.num_queries=4 "
                f"dataset.num_keys=4"
            )

    def needle_counts(self) -> tuple[int, int]:
        """Tell how many needles an example hides and how many its question asks for.

        Returns:
            Needles hidden, needles asked for; the task's own numbers where none was given. A multiquery task
            hides at least as many as it asks for, as RULER does.
        """
        keys, queries = TASKS[self.task]
        if self.num_queries is not None:
            queries = self.num_queries
            keys = max(keys, queries) if self.task == "multiquery" else keys
        return (keys if self.num_keys is None else self.num_keys), queries

    def identity(self) -> dict[str, Any]:
        """Tell what decides what an example is.

        Returns:
            The settings and the versions of the texts and words that examples are made of.
        """
        from sah.data.niah.haystack import source_version
        from sah.data.niah.needles import words_version

        keys, queries = self.needle_counts()
        return {
            "name": self.name,
            "generator_version": GENERATOR_VERSION,
            "task": self.task,
            "needle": self.needle,
            "haystack": self.haystack,
            "haystack_version": source_version(self.haystack),
            "words_version": words_version(),
            "length": self.length,
            "depths": resolve_depths(self.depths),
            "num_keys": keys,
            "num_queries": queries,
            "seed": self.seed,
            "max_new_tokens": self.max_new_tokens,
        }


def resolve_depths(depths: object) -> list[float]:
    """Turn the setting `dataset.depths` into depths.

    Args:
        depths: A count of evenly spaced depths, or a list of depths.

    Returns:
        Depths from 0 to 1; a count of 1 means the middle.

    Raises:
        ConfigError: If it is neither, is empty, or holds something outside 0 to 1.
    """
    if isinstance(depths, int) and not isinstance(depths, bool) and depths >= 1:
        return [0.5] if depths == 1 else [index / (depths - 1) for index in range(depths)]
    if not isinstance(depths, Sequence) or isinstance(depths, str) or not depths:
        raise _bad_depths(depths)
    for depth in depths:
        if isinstance(depth, bool) or not isinstance(depth, (int, float)) or math.isnan(depth) or not 0 <= depth <= 1:
            raise _bad_depths(depths)
    return [float(depth) for depth in depths]


def _bad_depths(depths: object) -> ConfigError:
    return bad_value(
        "dataset.depths",
        depths,
        "a list of numbers from 0 (start of the haystack) to 1 (its end), or a count of at least 1",
        "dataset.depths=[0.0,0.5,1.0] or dataset.depths=10",
    )
