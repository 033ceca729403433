"""Tail probability of a weighted sum of gamma variables, by quadrature: no random numbers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

_FIRST_STEP = 0.4
_LAST_STEP = _FIRST_STEP / 2**9
_ENDS = np.array([1.6, 2.0, 2.4, 2.8, 3.6, 5.6, 11.2])
"""Of the integral, in w: the first one where the integrand has become negligible. It falls as exp(-nw) at least, n
being the sum of the shapes."""
_NEGLIGIBLE = 1e-12
_SETTLED = 1e-4
"""Relative change at which halving the step ends. The rule's error squares with each halving: what is left is 1e-8."""


def probability_positive(weights: NDArray[np.float64], shapes: NDArray[np.float64]) -> float:
    """Compute P(sum of weights[i] * X[i] > 0) for independent X[i] ~ Gamma(shapes[i], 1).

    The moment generating function M is inverted along the vertical line through the saddle point of M(s) / s, after
    S. O. Rice, Distribution of quadratic forms in normal random variables: evaluation by numerical integration, SIAM
    J. Sci. Stat. Comput. 1 (1980). With the line as c + i sigma sinh(w) the trapezoidal rule converges exponentially,
    and small probabilities keep their digits.

    Args:
        weights: Finite numbers, (terms,).
        shapes: Positive numbers, (terms,), those with a weight other than 0 together 2 or more.

    Returns:
        The probability; 0 where no weight is positive.
    """
    kept = weights != 0
    weights, shapes = weights[kept], shapes[kept]
    if not weights.size or weights.max() <= 0:
        return 0.0
    if weights.min() >= 0:
        return 1.0
    if weights @ shapes > 0:  # the smaller tail is the one where the integrand does not oscillate
        return 1.0 - probability_positive(-weights, shapes)
    # The sum's sign does not depend on its scale: the largest weight becomes 1, and its pole stands at s = 1.
    weights = weights / weights.max()

    def slope(s: float) -> float:
        # Of log(M(s) / s), times s (1 - s): finite at both ends, negative at 0 and positive at 1.
        factors = np.where(weights < 1, (1 - s) / np.where(weights < 1, 1 - weights * s, 1.0), 1.0)
        return float(s * ((shapes * weights) @ factors)) - (1 - s)

    centre = brentq(slope, 0.0, 1.0, xtol=1e-10, rtol=1e-8)
    reduced = weights / (1 - centre * weights)
    width = 1 / np.sqrt(shapes @ reduced**2 + 1 / centre**2)
    at_centre = -float(shapes @ np.log1p(-centre * weights))

    def heights(w: NDArray[np.float64]) -> NDArray[np.complex128]:
        up = width * np.sinh(w)
        terms = np.outer(up, reduced)
        size = at_centre - np.log1p(terms * terms) @ (shapes / 2)
        turn = np.arctan(terms) @ shapes
        found: NDArray[np.complex128] = np.exp(size + 1j * turn) / (centre + 1j * up) * (np.cosh(w) * width / np.pi)
        return found

    middle = heights(np.zeros(1))[0].real
    negligible = np.abs(heights(_ENDS)) < _NEGLIGIBLE * middle
    end = _ENDS[negligible.argmax() if negligible.any() else -1]
    step = _FIRST_STEP
    total = middle / 2 + heights(np.arange(step, end, step)).real.sum()
    while True:
        before, step = total * step, step / 2
        total += heights(np.arange(step, end, 2 * step)).real.sum()
        if abs(total * step - before) <= _SETTLED * abs(before) or step <= _LAST_STEP:
            return float(min(max(total * step, 0.0), 1.0))
