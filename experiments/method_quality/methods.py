"""What the study runs: every method in four settings, and every sparse prefill in four.

Methods without a density of their own get settings whose measured densities come near those of the others; these were
chosen on two of the study's prompts.
"""

from __future__ import annotations

from experiments.methods import (
    ADAPTIVE,
    FEW_FIXED,
    MAGICPIG,
    RANDOM,
    SNAPKV,
    Settings,
    adaptive,
    magicpig,
    top_p,
    with_densities,
)

DENSITIES = (0.02, 0.05, 0.1, 0.2)

ORACLE = "topk"
"""The method that should bound all others with the same budget: it knows the true scores."""

CODES = ("hash_attention", "pqcache", "socket")
"""Methods that score keys by codes of a few bits."""

_CHOICES = {
    ORACLE: ["masker=topk"],
    "topk (group)": ["masker=topk", "masker.topk.selection=group"],
    "quest": ["masker=quest"],
    "quest (group)": ["masker=quest", "masker.quest.selection=group"],
    "double_sparsity": ["masker=double_sparsity"],
    "double_sparsity (group)": ["masker=double_sparsity", "masker.double_sparsity.selection=group"],
    "streaming_llm": ["masker=streaming_llm"],
    "random": ["masker=random"],
    RANDOM: ["masker=[sink,local,random]", *FEW_FIXED],
    **{name: [f"masker={name}"] for name in CODES},
    **{f"{name} (group)": [f"masker={name}", f"masker.{name}.selection=group"] for name in CODES},
    "h2o": ["masker=h2o"],
    "snapkv": [*SNAPKV],
    "snapkv (query-aware)": [*SNAPKV, "masker.snapkv.query_aware=true"],
    "tova": ["masker=tova"],
    "tova (query-aware)": ["masker=tova", "masker.tova.query_aware=true"],
}

FIXED: Settings = {name: with_densities(DENSITIES, *overrides) for name, overrides in _CHOICES.items()}
"""Methods with a fixed budget, by name. Sinks and window together keep 1 % of 2,048 keys, less than any density."""

OTHERS: Settings = {
    "topp": top_p(0.75, 0.9, 0.97, 0.99),
    ADAPTIVE: adaptive((0.005, 10, 0.5), (0.02, 40, 0.3), (0.05, 80, 0.1), (0.1, 180, 0.05)),
    MAGICPIG: magicpig((10, 75), (10, 175), (8, 90), (8, 160)),
}
"""Methods whose density follows from the attention scores, by name."""

PREFILLS: Settings = {
    f"prefill {name}": [["masker=dense", f"prefill={name}", f"prefill.density={density}"] for density in DENSITIES]
    for name in ("a_shape", "vertical_slash", "block_topk")
}
"""Sparse prefills by name; question and answer are dense. A density is a share of a context's (query, key) pairs."""
