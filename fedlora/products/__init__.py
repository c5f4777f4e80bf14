"""Arithmetic of what adapters mean: sums over their modules of ``scaling * B @ A``.

All of it is computed from the factors, in float64; no matrix of a weight's size is ever formed.
"""

from fedlora.products.algebra import balanced, change_inner, distance, inner, inner_by_module, norm
from fedlora.products.combination import Combined, combine
from fedlora.products.spectral import spectral_norms

__all__ = [
    "Combined",
    "balanced",
    "change_inner",
    "combine",
    "distance",
    "inner",
    "inner_by_module",
    "norm",
    "spectral_norms",
]
