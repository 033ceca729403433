"""`tracker=wandb` and the top-level `wandb` node."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from sah.errors import bad_value
from sah.tracking.base import Tracker, TrackerConfig
from sah.tracking.none import NoTracker

MODES = ("auto", "online", "offline", "disabled")


@dataclass
class WandbConfig(TrackerConfig):
    """Weights & Biases."""

    name: ClassVar[str] = "wandb"
    tracker: ClassVar[str] = "sah.tracking.wandb.WandbTracker"

    mode: str = "auto"
    """`auto`: what WANDB_MODE says; without it online if an API key is configured and the server takes it,
    else offline. `online`, `offline`, `disabled`: exactly that."""
    project: str = "sah"
    entity: str | None = None
    """User or team; None leaves it to the account."""
    group: str | None = None
    """Replaces the run's own group (the sweep)."""
    tags: list[str] = field(default_factory=list)
    """Added to the run's own tags."""
    system_stats: bool = False
    """Whether to sample processor and memory use."""
    start_timeout: float = 20.0
    """Seconds to wait for the server at the start."""
    finish_timeout: float = 60.0
    """Seconds to wait for uploads at the end; what is left stays on disk for `wandb sync`."""

    def validate(self) -> None:
        """Check the values.

        Raises:
            ConfigError: If one cannot be used.
        """
        super().validate()
        if self.mode not in MODES:
            raise bad_value("wandb.mode", self.mode, ", ".join(MODES), "wandb.mode=offline")
        if not isinstance(self.project, str) or not self.project.strip():
            raise bad_value("wandb.project", self.project, "a name", "wandb.project=sah")
        if not isinstance(self.tags, list) or not all(isinstance(tag, str) and tag for tag in self.tags):
            raise bad_value("wandb.tags", self.tags, "a list of words", "'wandb.tags=[first,second]'")
        for key in ("start_timeout", "finish_timeout"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
                raise bad_value(f"wandb.{key}", value, "seconds above 0", f"wandb.{key}=30")

    def create(self) -> Tracker:
        """Build the tracker; `mode=disabled` gives one that does nothing.

        Returns:
            The tracker, not yet started.
        """
        return NoTracker() if self.mode == "disabled" else super().create()
