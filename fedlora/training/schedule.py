"""The learning rate over a whole training."""

import math

from fedlora.sections import TrainingKeys


def learning_rate(keys: TrainingKeys, step: int, *, total_steps: int) -> float:
    """Return the learning rate of a step, above zero.

    It rises linearly over the warm-up, then falls as a half cosine to ``cosine_min_lr_ratio`` of
    ``learning_rate`` or as a line to zero, or stays. It depends on the step alone: a training cut
    into rounds has the same rates as one in a single piece. The shapes are those of transformers'
    schedules, but that the warm-up's first step already trains: theirs has a rate of zero.

    Args:
        keys: of the recipe.
        step: optimiser steps taken before this one, counted over all rounds.
        total_steps: optimiser steps of the whole training.
    """
    warmup = keys.warmup_steps
    if warmup is None:
        warmup = math.ceil(keys.warmup_ratio * total_steps)
    if step < warmup:
        return keys.learning_rate * (step + 1) / warmup
    progress = min((step - warmup) / max(total_steps - warmup, 1), 1.0)
    factor = 1.0
    if keys.lr_scheduler == "cosine":
        least = keys.cosine_min_lr_ratio
        factor = least + (1 - least) * (1 + math.cos(math.pi * progress)) / 2
    elif keys.lr_scheduler == "linear":
        factor = 1 - progress
    return keys.learning_rate * factor
