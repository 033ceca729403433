"""Where the YAML files of `conf/` lie, in a checkout and in an installed wheel."""

from __future__ import annotations

from pathlib import Path


def conf_dir() -> Path:
    """Find the folder of YAML configs.

    A wheel carries it inside the package (`sah/conf`); in a checkout it lies beside the package.

    Returns:
        Absolute path of the folder. If neither exists it is the one inside the package, which Hydra reports.
    """
    package = Path(__file__).resolve().parents[1]
    installed = package / "conf"
    checkout = package.parent / "conf"
    return checkout if checkout.is_dir() and not installed.is_dir() else installed
