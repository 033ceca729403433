"""Loose twins of config dataclasses, for Hydra's ConfigStore.

Hydra checks the type of every override while it composes and stops at the first wrong one, for a whole sweep.
The loose twin has the same fields and defaults with every type opened to `Any`: unknown keys are refused as
before, and wrong values reach `sah.config.build`, which reports them together and knows what is allowed.
"""

from __future__ import annotations

import dataclasses
import typing
from functools import cache
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

_STRICT_CLASS = "sah_strict_class"


def schema_node(config_class: type, *, open_root: bool = False) -> DictConfig:
    """Make the node that the ConfigStore keeps for a config dataclass.

    Args:
        config_class: The dataclass.
        open_root: Let groups add keys beside the fields of this node while Hydra composes.

    Returns:
        A structured node that remembers the dataclass; `strict_class` finds it again.
    """
    flags = {"struct": False} if open_root else None
    node: DictConfig = OmegaConf.structured(_loose_twin(config_class), flags=flags)
    return node


def strict_class(node: object) -> type | None:
    """Find the dataclass that a composed node was made for.

    Args:
        node: Any part of a composed config.

    Returns:
        The dataclass, or None for a plain mapping or value.
    """
    if not isinstance(node, DictConfig):
        return None
    node_type = OmegaConf.get_type(node)
    if not dataclasses.is_dataclass(node_type):
        return None
    found: type = getattr(node_type, _STRICT_CLASS, node_type)
    return found


@cache
def _loose_twin(config_class: type) -> type:
    """Build the twin of a dataclass, nested dataclasses included."""
    hints = typing.get_type_hints(config_class)
    fields: list[tuple[str, Any, dataclasses.Field[Any]]] = []
    for entry in dataclasses.fields(config_class):
        if not entry.init:
            continue
        hint = hints[entry.name]
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            twin = _loose_twin(hint)
            fields.append((entry.name, twin, dataclasses.field(default_factory=twin)))
        elif entry.default_factory is not dataclasses.MISSING:
            fields.append((entry.name, Any, dataclasses.field(default_factory=entry.default_factory)))
        else:
            default = MISSING if entry.default is dataclasses.MISSING else entry.default
            fields.append((entry.name, Any, dataclasses.field(default=default)))
    return dataclasses.make_dataclass(config_class.__name__, fields, namespace={_STRICT_CLASS: config_class})
