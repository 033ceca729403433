"""Tail probability of a weighted sum of gamma variables, by quadrature: no random numbers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

_STEP = 0.15
_W = _STEP * np.arange(80)
_PATH = 1j * np.sinh(_W) + 0.6 * (np.cosh(_W) - 1)
_SPEED = 1j * np.cosh(_W) + 0.6 * np.sinh(_W)
"""The path of integration, a hyperbola that opens to the right, and its derivative."""


def probability_positive(weights: NDArray[np.float64], shapes: NDArray[np.float64]) -> float:
    """Compute P(sum of weights[i] * X[i] > 0) for independent X[i] ~ Gamma(shapes[i], 1).

    The moment generating function M is inverted along a path through the saddle point of M(s) / s, after S. O. Rice,
    Distribution of quadratic forms in normal random variables: evaluation by numerical integration, SIAM J. Sci.
    Stat. Comput. 1 (1980). The path leaves the saddle point upright and bends to where M falls, so that the integrand
    hardly oscillates and the trapezoidal rule converges exponentially; small probabilities keep their digits.

    Args:
        weights: Finite numbers, (terms,).
        shapes: Positive numbers, (terms,).

    Returns:
        The probability; 0 where no weight is positive.
    """
    kept = weights != 0
    weights, shapes = weights[kept], shapes[kept]
    if not weights.size or weights.max() <= 0:
        return 0.0
    if weights.min() >= 0:
        return 1.0
    if weights @ shapes > 0:  # the smaller tail is the one that the path suits
        return 1.0 - probability_positive(-weights, shapes)
    # The sum's sign does not depend on its scale: the largest weight becomes 1, and its pole stands at s = 1.
    weights = weights / weights.max()

    def slope(s: float) -> float:
        # Of log(M(s) / s), times s (1 - s): finite at both ends, negative at 0 and positive at 1.
        factors = np.where(weights < 1, (1 - s) / np.where(weights < 1, 1 - weights * s, 1.0), 1.0)
        return float(s * ((shapes * weights) @ factors)) - (1 - s)

    centre = brentq(slope, 0.0, 1.0, xtol=1e-9, rtol=1e-4)
    reduced = weights / (1 - centre * weights)
    width = 1 / np.sqrt(shapes @ reduced**2 + 1 / centre**2)
    path = centre + width * _PATH
    exponent = -(np.log(1 - np.outer(path, weights)) @ shapes) - np.log(path)
    heights = (np.exp(exponent) * width * _SPEED).imag
    return float(min(max((heights.sum() - heights[0] / 2) * _STEP / np.pi, 0.0), 1.0))
