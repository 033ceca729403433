"""A composed config after validation: what one point is made of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sah.config.model import ModelConfig
from sah.config.schema import GenerationOptions

if TYPE_CHECKING:
    from sah.data.config import DatasetConfig
    from sah.sparse_attention.masker_config import MaskerConfig
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

    @property
    def label(self) -> str:
        """Name of the recipe: `dense`, `topk`, `sink+topk`."""
        return "+".join(key for key, _ in self.maskers) or DENSE

    @property
    def is_dense(self) -> bool:
        """Tell whether this is the dense baseline."""
        return not self.maskers
