"""Rényi differential privacy of Skellam noise, which is added to vectors of whole numbers."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MOST_VALUES = 2**31
"""Of a vector: more than any adapter has, and enough for a bound that is close for fewer."""


def divergence(
    noise_multiplier: float, *, granularity: int, orders: Sequence[float]
) -> NDArray[np.float64]:
    """Return the Rényi divergence, at each order, of a vector plus symmetric Skellam noise.

    With Δ₂ and Δ₁ the sensitivity in L2 and L1, in steps, and μ the noise's variance, it is at most

    ``a Δ₂² / (2μ) + min(((2a - 1) Δ₂² + 6 Δ₁) / (4μ²), 3 Δ₁ / (2μ))``

    at a whole order a, in which the first term is that of normal noise. Δ₁ is at most Δ₂², since
    whole numbers are at most their squares, and ``√d · Δ₂``.

    Guarantees:
        - An upper bound for up to ``MOST_VALUES`` values, whichever of two neighbours has the unit.
        - At an order that is not whole it is that of the next one: divergences grow with their
          order (van Erven and Harremoës 2014, arXiv:1206.2459, theorem 3).

    Args:
        noise_multiplier: standard deviation √μ of each value's noise over Δ₂.
        granularity: Δ₂.
        orders: each above 1.

    References:
        Agarwal, Kairouz and Liu 2021, arXiv:2110.04995, theorem 3.5 and corollary 3.6; the
        variance is there μ too.
    """
    whole = np.ceil(np.array(orders, dtype=float))
    variance = np.float64(noise_multiplier * granularity) ** 2
    square = float(granularity) ** 2
    absolute = min(MOST_VALUES**0.5 * granularity, square)
    fine = ((2 * whole - 1) * square + 6 * absolute) / (4 * variance**2)
    coarse = 3 * absolute / (2 * variance)
    bound: NDArray[np.float64] = whole / (2 * noise_multiplier**2) + np.minimum(fine, coarse)
    return bound
