"""The learning rate over a whole training."""

import math
from typing import Literal


def learning_rate_factor(
    step: int,
    *,
    total_steps: int,
    warmup_ratio: float,
    scheduler: Literal["cosine", "linear", "constant"],
) -> float:
    """Return what to multiply the recipe's learning rate by, in (0, 1].

    The factor rises linearly over the first ``warmup_ratio`` of all steps, then falls to zero as a
    half cosine or a line, or stays 1. It depends on the step alone: a training cut into rounds has
    the same rates as one in a single piece. No step before the last has a factor of zero.

    Args:
        step: optimiser steps taken before this one, counted over all rounds.
        total_steps: optimiser steps of the whole training.
        warmup_ratio: share of the steps, in [0, 1).
        scheduler: shape after the warm-up.
    """
    warmup = math.ceil(warmup_ratio * total_steps)
    if step < warmup:
        return (step + 1) / warmup
    progress = min((step - warmup) / max(total_steps - warmup, 1), 1.0)
    if scheduler == "cosine":
        return (1 + math.cos(math.pi * progress)) / 2
    return 1 - progress if scheduler == "linear" else 1.0
