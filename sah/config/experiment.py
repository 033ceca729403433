"""A composed config after validation: what one point is made of."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sah.config.model import ModelConfig
from sah.config.schema import GenerationOptions

if TYPE_CHECKING:
    from sah.data.config import DatasetConfig
    from sah.sparse_attention.masker_config import MaskerConfig
    from sah.sparse_attention.prefill.config import PrefillConfig
    from sah.tracking.base import TrackerConfig

DENSE = "dense"
"""The masker name that stands for no sparse attention at all."""


@dataclass(frozen=True)
class Experiment:
    """One point, every value checked."""

    model: ModelConfig
    maskers: tuple[tuple[str, MaskerConfig], ...]
    """Key and config of each masker in order, the density filled in where it is read; empty for dense."""

    dataset: DatasetConfig
    tracker: TrackerConfig
    density: float
    """The top-level density. Maskers that read it hold it already; a point's identity takes it from them."""

    execution: str
    phases: tuple[str, ...]
    """Phases that run sparse. The dense baseline has them too, and does not read them."""

    dense_layers: int | str | list[int]
    """Layers that stay dense, as given. The dense baseline does not read them."""

    fidelity: bool
    """Whether sparse settings also read the dense answers. Changes no answer; the dense baseline does not read it."""

    attention_error: float
    """Share of the queries in that reading that are compared with dense attention."""

    generation: GenerationOptions
    seed: int
    output_dir: Path
    """Absolute path of the output folder."""

    context_cache_bytes: int
    context_folder: Path | None
    """Absolute path of the folder that keeps prefilled contexts, or None."""

    context_folder_bytes: int
    lanes_bytes: int
    """Memory for the answers decoded together."""

    objectives: tuple[str, ...]
    """What a sweeper that optimises is told."""

    margin: float
    """Difference of scores within which sparse and dense count as tied. Changes no row."""

    threads: int | None
    timing: bool
    """Whether decoding is timed after the rows."""

    prefill: PrefillConfig | None = None
    """The pattern that contexts are prefilled with; None for a dense prefill, which the dense baseline always has."""

    @property
    def label(self) -> str:
        """Name of the recipe: `dense`, `topk`, `sink+topk`."""
        return "+".join(key for key, _ in self.maskers) or DENSE

    @property
    def prefill_label(self) -> str:
        """Name of a sparse prefill with what it keeps: `block_topk 0.1`; empty for a dense one."""
        return "" if self.prefill is None else prefill_label(self.prefill)

    @property
    def title(self) -> str:
        """Name of the recipe and of a sparse prefill: `topk`, `dense + prefill block_topk 0.1`."""
        return self.label + (f" + prefill {self.prefill_label}" if self.prefill is not None else "")

    @property
    def is_dense(self) -> bool:
        """Tell whether this is the dense baseline: nothing is sparse, neither the prefill nor what follows it."""
        return not self.maskers and self.prefill is None


def prefill_label(prefill: PrefillConfig) -> str:
    """Name a sparse prefill.

    Args:
        prefill: Its config.

    Returns:
        Its name and density, and all other values that are not the class's own: `block_topk 0.1 block_size=64`.
    """
    words = [prefill.name or type(prefill).__name__]
    density = getattr(prefill, "target_density", None)  # of patterns with a budget only
    if density is not None:
        words.append(f"{density:g}")
    for entry in dataclasses.fields(prefill):
        value = getattr(prefill, entry.name)
        if entry.name != "density" and value != _default(entry):
            words.append(f"{entry.name}={value}")
    return " ".join(words)


def _default(entry: dataclasses.Field[Any]) -> Any:
    return entry.default if entry.default_factory is dataclasses.MISSING else entry.default_factory()
