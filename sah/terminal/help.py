"""`sah --help` without Hydra, which takes seconds to list groups of its own first. The text is the same."""

from __future__ import annotations

import string
from collections.abc import Sequence

from omegaconf import OmegaConf

from sah.config.paths import conf_dir
from sah.config.register import HELP_RESOLVER, groups_text
from sah.terminal.command import parser
from sah.terminal.ls import find_groups
from sah.terminal.screen import console, show_line


def main(arguments: Sequence[str]) -> int:
    """Print what `python -m sah.run --help` prints.

    Args:
        arguments: None are taken.

    Returns:
        The exit code, 0.
    """
    parser("help", "Show all commands, groups and examples.", "  sah help").parse_args(arguments)
    options = {group: {option.name for option in found} for group, found in find_groups().items()}
    OmegaConf.register_new_resolver(HELP_RESOLVER, lambda: groups_text(options), replace=True)
    config = OmegaConf.create({"hydra": {"help": OmegaConf.load(conf_dir() / "hydra" / "help" / "sah.yaml")}})
    show_line(console(), string.Template(config.hydra.help.template).substitute())
    return 0
