"""The best approximation of low rank of a product whose factors are tall and thin."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fedlora.errors import AdapterError

# Singular values are relative to the root of the sum of all components' squares.
_SMALLEST = 3e-5
"""Below this, a singular value's square drowns in the rounding of Gram matrices, about 1e-15."""
_ZERO = 1e-12
"""Up to this, a singular value is but rounding."""
_TINY, _HUGE = 1e-35, 1e35
"""Norms between which a component's factors are in the range of float32."""

_STRIP = 48
"""Rows of a Gram matrix that are multiplied out at once."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Approximation:
    """``U Σ Vᵀ``, the leading singular triplets of ``B diag(weights) A``; none of them is zero."""

    left: Tensor
    """``(R, kept)`` float64: ``B left = U Σ``."""
    right: Tensor
    """``(kept, R)`` float64: ``right A = Vᵀ``."""
    total: float
    """Squared Frobenius norm of the matrix."""
    dropped: float
    """Squared Frobenius norm of what the approximation lacks of it."""


def best_approximation(a: Tensor, b: Tensor, weights: Tensor, *, rank: int) -> Approximation:
    """Return the best approximation of ``B diag(weights) A`` of at most ``rank``, by Grams.

    With ``A Aᵀ = L Lᵀ``, the squares of the singular values of ``B A`` are the eigenvalues of
    ``Lᵀ Bᵀ B L``. For that, each row of A is taken as of norm one and its norm is put into the
    weights, so that it does not matter how a component is shared out between A and B.

    Args:
        a: ``(R, in)`` float64.
        b: ``(out, R)`` float64.
        weights: ``(R,)`` float64, of any sign.
        rank: at least 1.

    Raises:
        AdapterError: a value is not finite, or too large.
    """
    gram_a, gram_b = gram(a), gram(b.T)
    rows, columns = gram_a.diagonal().sqrt(), gram_b.diagonal().sqrt()
    alive = rows * columns * weights.abs() > _TINY
    unit, scale = torch.where(alive, 1 / rows, 0.0), torch.where(alive, weights * rows, 0.0)
    gram_a *= unit[:, None] * unit
    gram_a.diagonal()[~alive] = 1
    gram_b *= scale[:, None] * scale
    total, parts = float((gram_a * gram_b).sum()), float(gram_b.diagonal().sum())
    if not (math.isfinite(total) and parts < _HUGE**2):
        raise AdapterError(
            f"Products that are finite and of a norm below {_HUGE:g} were expected, but there is "
            "one that is not."
        )
    components = int(alive.sum())
    kept = min(rank, components)
    lower, failed = torch.linalg.cholesky_ex(gram_a)
    if not failed:
        squares, turn = torch.linalg.eigh(lower.T @ gram_b @ lower)
        squares, turn = squares.flip(0), turn.flip(1)[:, :kept]
        if not kept or squares[kept - 1] >= _SMALLEST**2 * parts:
            left = lower @ turn
            return Approximation(
                left=scale[:, None] * left,
                right=(left.T @ gram_b) * unit / squares[:kept, None],
                total=total,
                dropped=float(squares[kept:components].clamp(min=0).sum()),
            )
    return _without_squares(a * unit[:, None], b * scale, unit=unit, scale=scale, rank=rank)


def _without_squares(
    a: Tensor, b: Tensor, *, unit: Tensor, scale: Tensor, rank: int
) -> Approximation:
    """Return the same where components cancel, or depend on each other: to all digits, slowly.

    Args:
        a: ``(R, in)``, the rows of norm one, or zero.
        b: ``(out, R)``, with all that the components weigh.
        unit: ``(R,)``, what the rows of A were multiplied with.
        scale: ``(R,)``, what the columns of B were multiplied with.
        rank: as ``best_approximation``.
    """
    lower, upper = torch.linalg.qr(a.T, mode="r").R.T, torch.linalg.qr(b, mode="r").R
    u, singular, vh = torch.linalg.svd(upper @ lower, full_matrices=False)
    zero = _ZERO * float(torch.linalg.matrix_norm(upper))
    kept = min(rank, int((singular > zero).sum()))
    squares = singular.square()
    return Approximation(
        left=scale[:, None] * (lower @ vh[:kept].T),
        right=(u[:, :kept].T @ upper) * unit / singular[:kept, None],
        total=float(squares.sum()),
        dropped=float(squares[kept:].sum()),
    )


def gram(rows: Tensor) -> Tensor:
    """Return ``rows @ rows.T``, of which little more than the lower half is multiplied out."""
    size = len(rows)
    result = rows.new_empty(size, size)
    for start in range(0, size, _STRIP):
        end = min(start + _STRIP, size)
        torch.mm(rows[start:end], rows[:end].T, out=result[start:end, :end])
        result[:start, start:end] = result[start:end, :start].T
    return result
