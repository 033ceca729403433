"""What the study runs: every method in four settings.

Methods without a density of their own get settings whose measured densities come near those of the others; these were
chosen on two of the study's prompts.
"""

from __future__ import annotations

DENSITIES = (0.02, 0.05, 0.1, 0.2)

ORACLE = "topk"
"""The method that should bound all others with the same budget: it knows the true scores."""

_FEW_FIXED = ["masker.sink.sink_size=4", "masker.local.window_size=16"]
"""Sinks and window together keep 1 % of 2,048 keys, less than the smallest density."""


def fixed(*overrides: str) -> list[list[str]]:
    """Give the settings of a method that has a density.

    Args:
        *overrides: What chooses the method.

    Returns:
        The overrides of each setting.
    """
    return [[*overrides, f"density={density}"] for density in DENSITIES]


FIXED: dict[str, list[list[str]]] = {
    ORACLE: fixed("masker=topk"),
    "topk (group)": fixed("masker=topk", "masker.topk.selection=group"),
    "quest": fixed("masker=quest"),
    "quest (group)": fixed("masker=quest", "masker.quest.selection=group"),
    "double_sparsity": fixed("masker=double_sparsity"),
    "double_sparsity (group)": fixed("masker=double_sparsity", "masker.double_sparsity.selection=group"),
    "streaming_llm": fixed("masker=streaming_llm"),
    "random": fixed("masker=random"),
    "sink+local+random": fixed("masker=[sink,local,random]", *_FEW_FIXED),
}
"""Methods with a fixed budget, by name."""

OTHERS: dict[str, list[list[str]]] = {
    "topp": [["masker=topp", f"masker.topp.top_p={top_p}"] for top_p in (0.75, 0.9, 0.97, 0.99)],
    "sink+local+topk+adaptive": [
        [
            "masker=[sink,local,topk,adaptive]",
            *_FEW_FIXED,
            f"masker.topk.heavy_size={heavy_size}",
            f"masker.adaptive.base_rate={base_rate}",
            f"masker.adaptive.epsilon={error}",
            f"masker.adaptive.delta={error}",
        ]
        for heavy_size, base_rate, error in (
            (0.005, 10, 0.5),
            (0.02, 40, 0.3),
            (0.05, 80, 0.1),
            (0.1, 180, 0.05),
        )
    ],
    "sink+local+magicpig": [
        [
            "masker=[sink,local,magicpig]",
            *_FEW_FIXED,
            f"masker.magicpig.lsh_k={bits}",
            f"masker.magicpig.lsh_l={tables}",
        ]
        for bits, tables in ((10, 75), (10, 175), (8, 90), (8, 160))
    ],
}
"""Methods whose density follows from the attention scores, by name."""

SHORT = {
    "masker.topp.top_p": "top_p",
    "masker.topk.heavy_size": "heavy_size",
    "masker.adaptive.base_rate": "base_rate",
    "masker.adaptive.epsilon": "epsilon = delta",
    "masker.magicpig.lsh_k": "K",
    "masker.magicpig.lsh_l": "L",
    "density": "density",
}
"""What a setting's overrides are called in the table; others are the same in all settings of a method."""


def setting(overrides: list[str]) -> str:
    """Name a setting by what tells it from the other settings of its method.

    Args:
        overrides: The setting's overrides.

    Returns:
        Such as `density 0.05` or `K 10, L 75`.
    """
    pairs = [override.split("=", 1) for override in overrides]
    return ", ".join(f"{SHORT[key]} {value}" for key, value in pairs if key in SHORT)
