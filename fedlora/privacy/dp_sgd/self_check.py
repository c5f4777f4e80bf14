"""What a private step checks of itself, while it runs.

Each function raises what it raises with a fixed text: no number of a private run is in it.
"""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from fedlora.errors import RunError

FALSE_ALARM = 1e-15
"""Most probability that ``require_noise`` stops a correct step with.

Stopping is a release, too: a step that is tested has this much more in δ, times 1 + exp(ε).
"""


def require_noise(noise: Sequence[Tensor], *, deviation: float) -> None:
    """Do nothing if noise has the standard deviation that it was calibrated to.

    All values together and each tensor alone are tested: the sum of squares has a χ² distribution,
    and an alarm is raised outside of bounds that it keeps with a probability of at least
    1 - ``FALSE_ALARM``. A million values show a deviation that is wrong by 1 %, a hundred that
    there is no noise at all.

    Args:
        noise: what was added to each trained tensor, float64.
        deviation: standard deviation that it must have.

    Raises:
        RunError: it has another.

    References:
        Laurent and Massart 2000, doi:10.1214/aos/1015957395, lemma 1: a χ² variable with n degrees
        of freedom exceeds n + 2√(nx) + 2x, or falls below n - 2√(nx), with a probability of at most
        exp(-x) each.
    """
    counts = [each.numel() for each in noise]
    squares = torch.stack([each.flatten().dot(each.flatten()) for each in noise]) / deviation**2
    sums = [*squares.tolist(), float(squares.sum())]
    x = math.log(2 * len(sums) / FALSE_ALARM)
    for n, square in zip([*counts, sum(counts)], sums, strict=True):
        spread = 2 * math.sqrt(n * x)
        if not n - spread <= square <= n + spread + 2 * x:
            raise RunError(
                "Privacy self-test: the noise in a step does not have the standard deviation that "
                "it was calibrated to. Nothing has left; do not train here before the cause is "
                "found."
            )


def require_within(norm: float, clip_norm: float) -> None:
    """Do nothing if the norm of a clipped gradient is within the bound.

    Raises:
        RunError: it is above, or not a number.
    """
    if not norm <= clip_norm:
        raise RunError(
            "Privacy self-test: a clipped gradient is larger than clip_norm. Nothing has left; do "
            "not train here before the cause is found."
        )


def require_moved(
    before: Iterable[Tensor], after: Iterable[Tensor], stepped: Iterable[Tensor]
) -> None:
    """Do nothing if the optimiser has moved the tensors that the model computes with.

    Training can otherwise go on with a plausible loss and ε, and end with what it began with
    (Opacus issue 820).

    Args:
        before: some values of each trained tensor, copied before the first step.
        after: the same values of the model's parameters, now.
        stepped: what the optimiser steps, as views of the same values.

    Raises:
        RunError: no value has moved, or the optimiser steps other memory than the model's.
    """
    moved = False
    for old, new, view in zip(before, after, stepped, strict=True):
        moved = moved or not torch.equal(old, new)
        if new.data_ptr() != view.data_ptr():
            break
    else:
        if moved:
            return
    raise RunError(
        "Privacy self-test: the adapter has not moved, although steps were taken. Load the base "
        "model again."
    )
