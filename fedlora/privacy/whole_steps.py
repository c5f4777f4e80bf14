"""Clipped vectors cut to whole numbers: sums of them are exact, and so is their sensitivity."""

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK = 2**16
"""Values that are taken to float64 at once."""
_MARGIN = 1e-6
"""By how much clipping stays below the bound, relatively."""


def norm(values: Tensor) -> float:
    """Return the L2 norm; not finite if a value is not.

    Args:
        values: ``(d,)`` float32.
    """
    return float(torch.linalg.vector_norm(values, dtype=torch.float64))


def whole_steps(values: Tensor, *, norm: float, clip_norm: float, steps: float) -> Iterator[Tensor]:
    """Yield a vector, clipped, as whole numbers of steps, in blocks of ``BLOCK`` values.

    Guarantees:
        - The L2 norm of all that is yielded together is at most ``steps``, exactly.
        - Each number is its value, clipped to ``clip_norm`` less a millionth, in steps, cut towards
          zero: less than 1 + 2⁻²⁰ steps off, for up to 2³¹ steps.
        - ``values`` are left as they are.

    Why: cutting makes no vector longer, and the margin of 10⁻⁶ is more than what float64 loses in
    any order of 2³¹ additions on the way to the norm (2.4 · 10⁻⁷) and in the products that scale
    (10⁻¹⁵).

    Args:
        values: ``(d,)`` float32, finite, d below 2³¹.
        norm: what ``norm`` returns of them.
        clip_norm: the largest norm, in the unit of the values.
        steps: of which ``clip_norm`` is made.

    Yields:
        float64 on the CPU, to be overwritten or kept.
    """
    bound = clip_norm * (1 - _MARGIN)
    scale = bound / max(norm, bound) * (steps / clip_norm)
    for part in values.split(BLOCK):
        yield part.double().mul_(scale).trunc_()
