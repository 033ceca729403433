"""The methods that studies compare, and what a setting of one is called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Settings = Mapping[str, Sequence[Sequence[str]]]
"""Name of a method to the overrides of each of its settings."""

FEW_FIXED = ("masker.sink.sink_size=4", "masker.local.window_size=16")
"""What recipes keep beside what they choose."""

SNAPKV = ("masker=snapkv", "masker.snapkv.window=16")
"""The window is that of the paper's needle test. The default of 64, kept first, would fill small budgets by itself."""

ADAPTIVE = "sink+local+topk+adaptive"
RANDOM = "sink+local+random"
MAGICPIG = "sink+local+magicpig"

ADAPTIVE_SIZES = ((0.01, 18, 0.3), (0.03, 45, 0.15), (0.08, 90, 0.06))
MAGICPIG_TABLES = ((10, 150), (8, 90), (8, 155))
"""Of both: settings near the densities 0.05, 0.1 and 0.2 on two needles in 1,024 tokens."""

_SHORT = {
    "masker.topp.top_p": "top_p",
    "masker.topk.heavy_size": "heavy_size",
    "masker.adaptive.base_rate": "base_rate",
    "masker.adaptive.epsilon": "epsilon = delta",
    "masker.magicpig.lsh_k": "K",
    "masker.magicpig.lsh_l": "L",
    "density": "density",
    "prefill.density": "prefill density",
}
"""What a setting's overrides are called in tables; others are the same in all settings of a method."""


def with_densities(densities: Sequence[float], *overrides: str) -> list[list[str]]:
    """Give the settings of a method that has a density.

    Args:
        densities: One a setting.
        *overrides: What chooses the method.

    Returns:
        The overrides of each setting.
    """
    return [[*overrides, f"density={density}"] for density in densities]


def top_p(*shares: float) -> list[list[str]]:
    """Give settings of oracle top-p."""
    return [["masker=topp", f"masker.topp.top_p={share}"] for share in shares]


def adaptive(*sizes: tuple[float, int, float]) -> list[list[str]]:
    """Give settings of vAttention's recipe.

    Args:
        *sizes: Of each setting: share that top-k keeps, keys of the base sample, and epsilon, which delta equals.
    """
    return [
        [
            "masker=[sink,local,topk,adaptive]",
            *FEW_FIXED,
            f"masker.topk.heavy_size={heavy_size}",
            f"masker.adaptive.base_rate={base_rate}",
            f"masker.adaptive.epsilon={error}",
            f"masker.adaptive.delta={error}",
        ]
        for heavy_size, base_rate, error in sizes
    ]


def magicpig(*tables: tuple[int, int]) -> list[list[str]]:
    """Give settings of MagicPIG.

    Args:
        *tables: Of each setting: bits of a signature, and tables.
    """
    return [
        ["masker=[sink,local,magicpig]", *FEW_FIXED, f"masker.magicpig.lsh_k={bits}", f"masker.magicpig.lsh_l={count}"]
        for bits, count in tables
    ]


def setting(overrides: Sequence[str]) -> str:
    """Name a setting by what tells it from the other settings of its method.

    Args:
        overrides: The setting's overrides.

    Returns:
        Such as `density 0.05` or `K 10, L 75`.
    """
    pairs = [override.split("=", 1) for override in overrides]
    return ", ".join(f"{_SHORT[key]} {value}" for key, value in pairs if key in _SHORT)
