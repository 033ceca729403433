"""Puts every schema into Hydra's ConfigStore. Found by walking packages: there is no list to extend."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from sah.config.launcher import launcher_node, sweeper_node
from sah.config.lenient import schema_node
from sah.config.model import ModelConfig
from sah.config.prefill import DENSE, PREFILL
from sah.config.schema import ExperimentConfig
from sah.data.discovery import dataset_configs
from sah.sparse_attention.discovery import masker_configs
from sah.sparse_attention.prefill.discovery import prefill_configs
from sah.tracking.discovery import tracker_configs

HELP_RESOLVER = "sah_groups"
"""Resolver of the help text: `${sah_groups:}` lists the config groups and their options."""


@cache
def register_configs() -> None:
    """Register the schema of the root, of every group and of our launcher, and the help's resolver. Idempotent."""
    store = ConfigStore.instance()
    store.store(name="sah_schema", node=schema_node(ExperimentConfig, open_root=True), provider="sah")
    groups: dict[str, dict[str, type]] = {
        "masker": dict(masker_configs()),
        "dataset": dict(dataset_configs()),
        PREFILL: dict(prefill_configs()),
        "tracker": dict(tracker_configs()),
        "model": {"model": ModelConfig},
    }
    for group, classes in groups.items():
        for name, config_class in classes.items():
            store.store(group=f"{group}/schema", name=name, node=schema_node(config_class), provider="sah")
    # A sweep's own config has the default prefill, and takes values for the patterns that its jobs choose.
    dense = OmegaConf.create({}, flags={"struct": False})
    store.store(group=f"{PREFILL}/schema", name=DENSE, node=dense, provider="sah")
    store.store(group="hydra/launcher", name="grouped", node=launcher_node(), provider="sah")
    store.store(group="hydra/sweeper", name="grouped", node=sweeper_node(), provider="sah")
    OmegaConf.register_new_resolver(HELP_RESOLVER, _groups_text, replace=True)


def _groups_text() -> str:
    """List the options of every group on Hydra's search path, the user's own `--config-dir` included."""
    options: dict[str, set[str]] = {}
    for source in HydraConfig.get().runtime.config_sources:
        if source.schema != "file":
            continue
        for file in Path(source.path).glob("*/*.yaml"):
            options.setdefault(file.parent.name, set()).add(file.stem)
    return groups_text(options)


def groups_text(options: Mapping[str, Iterable[str]]) -> str:
    """Write groups and their options for the help.

    Args:
        options: Group to the names of its options.

    Returns:
        One line a group, presets last.
    """
    lines = []
    for group in sorted(options, key=lambda name: (name == "experiment", name)):
        shown = f"+{group}" if group == "experiment" else group
        lines.append(f"  {shown + '=':<13}{', '.join(sorted(options[group]))}")
    return "\n".join(lines)
