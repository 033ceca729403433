"""The composed config of one point, as `conf/config.yaml` lays it out. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from sah.config.base import ValidatedConfig
from sah.config.model import ModelConfig
from sah.config.values import DEFAULT_MAX_NEW_TOKENS, check_count, check_share
from sah.errors import bad_value
from sah.sparse_attention.config import PHASES, check_phases, parse_dense_layers


@dataclass
class GenerationOptions(ValidatedConfig):
    """How answers are generated."""

    max_new_tokens: int | None = None
    """Most tokens of an answer. None: the question's own limit, else `DEFAULT_MAX_NEW_TOKENS`."""

    def limit(self, question_limit: int | None) -> int:
        """Tell how many tokens one answer may have.

        Args:
            question_limit: The question's own limit, None if it has none.

        Returns:
            The limit that holds, at least 1.
        """
        return self.max_new_tokens or question_limit or DEFAULT_MAX_NEW_TOKENS

    def validate(self) -> None:
        """Check the limit.

        Raises:
            ConfigError: If it is below 1.
        """
        super().validate()
        if self.max_new_tokens is not None:
            check_count("generation.max_new_tokens", self.max_new_tokens, minimum=1)


@dataclass
class ExperimentConfig(ValidatedConfig):
    """Root of the config tree. The groups are checked by `sah.config.build`, the rest here."""

    EXECUTIONS: ClassVar[tuple[str, ...]] = ("auto", "research", "efficient")
    OBJECTIVES: ClassVar[tuple[str, ...]] = ("score", "density", "bytes")

    model: ModelConfig
    masker: Any
    """Masker key to its values, in the order of the recipe; `{dense: {}}` is the dense baseline."""

    dataset: Any
    tracker: Any
    """The tracker's name; its values stand in the top-level node of that name."""

    prefill: Any = None
    """Values of the pattern that contexts are prefilled with; empty or None for a dense prefill."""

    density: Any = 0.1
    """Share of the allowed keys that budgeted maskers keep, unless they have a budget of their own."""

    execution: Any = "auto"
    phases: Any = field(default_factory=lambda: list(PHASES))
    """Phases that run sparse: `[question, decode]` or `[decode]`."""

    dense_layers: Any = field(default_factory=list)
    """Layers that stay dense: `[0, 1]`, `"0-1"`, `"28-"`."""

    fidelity: bool = True
    """Whether every sparse setting also reads the dense answers, for KL, agreement and attention error."""

    attention_error: Any = 0.05
    """Share of the queries in that reading that are compared with dense attention in every sparse layer, 0 to 1."""

    generation: GenerationOptions = field(default_factory=GenerationOptions)
    seed: int = 0
    """Seed of sampling maskers. Data sets have a seed of their own."""

    output_dir: str = "outputs"
    """Folder of results and of Hydra's job folders, relative to the working folder."""

    context_cache_gib: float = 4.0
    """Most memory in GiB for the prefilled contexts that the points of one process share; 0 keeps none."""

    context_folder: str | None = None
    """Folder that keeps prefilled contexts for later runs, relative to the working folder; None keeps none on disk."""

    context_folder_gib: float = 20.0
    """Most disk space in GiB for `context_folder`; the contexts not used for longest make room."""

    lanes_gib: float = 2.0
    """Most memory in GiB that the answers decoded together may take beside the model and the context; at least one
    answer is decoded in any case."""

    objectives: list[str] = field(default_factory=lambda: ["score"])
    """What a point returns to a sweeper that optimises, in the order of its directions: score, density, bytes."""

    search: dict[str, Any] = field(default_factory=dict)
    """Further axes of a search, by masker and field; see `sah.config.search`. A point itself does not read them."""

    margin: float = 0.05
    """Difference of scores within which sparse and dense count as tied, in the metric's own unit; changes no row."""

    threads: int | None = 1
    """CPU threads of torch; None leaves torch's own choice."""

    timing: bool = False
    """Whether the decoding of the first examples is timed after the rows; changes no row."""

    report: bool = True
    """Whether a sweep ends with a page of its results (`python -m sah.report`); a point itself does not read it."""

    def validate(self) -> None:
        """Check the values that stand at the root.

        Raises:
            ConfigError: If one of them cannot be used.
        """
        super().validate()
        check_share("density", self.density)
        if self.execution not in self.EXECUTIONS:
            raise bad_value("execution", self.execution, ", ".join(self.EXECUTIONS), "execution=auto")
        check_phases(self.phases)
        parse_dense_layers(self.dense_layers)
        check_share("attention_error", self.attention_error, or_zero=True)
        check_count("seed", self.seed)
        if not self.output_dir.strip():
            raise bad_value("output_dir", self.output_dir, "the path of a folder", "output_dir=outputs")
        for key, written in (("context_cache_gib", "4"), ("context_folder_gib", "20"), ("lanes_gib", "2")):
            size = getattr(self, key)
            if not (math.isfinite(size) and size >= 0):
                raise bad_value(key, size, "a number of GiB, 0 or more", f"{key}={written}")
        if self.context_folder is not None and not self.context_folder.strip():
            raise bad_value(
                "context_folder", self.context_folder, "null or the path of a folder", "context_folder=null"
            )
        wrong = [name for name in self.objectives if name not in self.OBJECTIVES]
        if wrong or not self.objectives or len(set(self.objectives)) < len(self.objectives):
            allowed = f"a list of one or more of {', '.join(self.OBJECTIVES)}, each once"
            raise bad_value("objectives", self.objectives, allowed, "objectives=[score,density]")
        check_share("margin", self.margin, or_zero=True)
        if self.threads is not None:
            check_count("threads", self.threads, minimum=1)
