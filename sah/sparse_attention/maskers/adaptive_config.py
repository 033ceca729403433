"""Config of adaptive sampling (vAttention)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from sah.config.values import check_count, check_size
from sah.errors import bad_value
from sah.sparse_attention.masker_config import SelectiveMaskerConfig

DENOMINATOR, NUMERATOR, OUTPUT = GUARANTEES = ("denominator", "numerator", "output")


@dataclass
class AdaptiveSamplingMaskerConfig(SelectiveMaskerConfig):
    """Draws as many of the keys not yet kept as a promised error asks for, and weighs them by 1/p.

    The defaults of `base_rate`, `epsilon`, `delta` and `guarantee` are those that the authors publish with their code
    (github.com/xAlg-ai/sparse-attention-hub), where they stand beside sink 128, local 128 and a top-k; `base_min` is
    ours.
    """

    name: ClassVar[str] = "adaptive"
    masker: ClassVar[str] = "sah.sparse_attention.maskers.adaptive.AdaptiveSamplingMasker"
    is_sampler: ClassVar[bool] = True

    base_rate: int | float = 0.05
    """Keys drawn to estimate from, at least two: an int is a number of keys, a float a share of the residual."""

    base_min: int = 128
    """Fewest keys that a share in `base_rate` stands for, as far as there are so many: a few dozen show too little of a
    heavy tail for the promise to hold (tests/e2e/test_adaptive_smollm2.py). A number in `base_rate` is taken as it
    is."""

    epsilon: float = 0.05
    """Largest relative error promised, above 0 and below 1."""

    delta: float = 0.05
    """Largest probability that the error is larger, above 0 and below 1."""

    guarantee: str = DENOMINATOR
    """What the error is promised for: `denominator` (the sum of exponentials), `numerator` (their sum times the values)
    or `output` (attention itself)."""

    def identity(self) -> dict[str, Any]:
        """Return the values; the floor of the base sample counts only where a share is given."""
        values = super().identity()
        return {k: v for k, v in values.items() if k != "base_min"} if isinstance(self.base_rate, int) else values

    def validate(self) -> None:
        """Check the numbers and the guarantee.

        Raises:
            ConfigError: If one of them cannot be used.
        """
        super().validate()
        check_size(self.key("base_rate"), self.base_rate)
        check_count(self.key("base_min"), self.base_min, minimum=2)
        for field_name in ("epsilon", "delta"):
            value = getattr(self, field_name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
                key = self.key(field_name)
                raise bad_value(key, value, "a number above 0 and below 1", f"{key}=0.05")
        if self.guarantee not in GUARANTEES:
            key = self.key("guarantee")
            raise bad_value(key, self.guarantee, ", ".join(GUARANTEES), f"{key}={DENOMINATOR}")
