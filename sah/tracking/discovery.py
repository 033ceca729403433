"""Finding trackers by their config modules, and building one. Imports no wandb."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import sah.tracking
from sah.tracking.base import TrackerConfig
from sah.tracking.safe import SafeTracker


def tracker_configs() -> dict[str, type[TrackerConfig]]:
    """Find every tracker: the `TrackerConfig` classes of the modules `sah/tracking/*_config.py`.

    Returns:
        Name to config class, sorted by name.
    """
    found: dict[str, type[TrackerConfig]] = {}
    for module_info in pkgutil.iter_modules(sah.tracking.__path__):
        if not module_info.name.endswith("_config"):
            continue
        module = importlib.import_module(f"sah.tracking.{module_info.name}")
        for _, member in inspect.getmembers(module, inspect.isclass):
            if issubclass(member, TrackerConfig) and member.__module__ == module.__name__:
                found[member.name] = member
    return dict(sorted(found.items()))


def create_tracker(config: TrackerConfig) -> SafeTracker:
    """Build a tracker of which no failure reaches the run.

    Args:
        config: The tracker's config.

    Returns:
        The tracker, not yet started. Use a new one for every run.
    """
    return SafeTracker(config.name, config.create)
