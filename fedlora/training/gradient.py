"""From the losses of a step's examples to the gradient that the optimiser steps with."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from statistics import fmean
from typing import Protocol, TypeAlias

from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from fedlora.recipe import Recipe
from fedlora.training.base_model.trained_part import TrainedPart
from fedlora.training.divergence import Divergence


class Gradient(Protocol):
    """Makes the gradient of one step after another."""

    def add(self, losses: Tensor) -> None:
        """Add the examples of a micro-batch to the step.

        Args:
            losses: ``(batch,)``, differentiable.
        """

    def finish(self) -> bool:
        """Leave the gradient of what was added on the trained tensors, and begin a new step.

        Returns:
            Whether the optimiser can step with it: false where the training has diverged.
        """


GradientOf: TypeAlias = Callable[[TrainedPart], AbstractContextManager[Gradient]]
"""Makes gradients for what is trained, for as long as the context is open."""


def plain_gradient(recipe: Recipe) -> GradientOf:
    """Return how to train without privacy.

    The gradient is the sum of the examples' gradients over ``recipe.batch_size``, the *expected*
    number of examples, clipped to ``recipe.max_grad_norm``. A training has diverged when a gradient
    is not finite, or by its losses (``Divergence``).
    """
    return lambda trained: nullcontext(_PlainGradient(trained, recipe))


class _PlainGradient:
    def __init__(self, trained: TrainedPart, recipe: Recipe) -> None:
        self._trained = trained
        self._recipe = recipe
        self._divergence = Divergence()
        self._losses: list[float] = []

    def add(self, losses: Tensor) -> None:
        (losses.sum() / self._recipe.batch_size).backward()
        self._losses += losses.detach().tolist()

    def finish(self) -> bool:
        self._trained.take_gradients()
        norm = clip_grad_norm_(self._trained.tensors, self._recipe.max_grad_norm)
        diverged = bool(self._losses) and self._divergence.has_come(fmean(self._losses))
        self._losses.clear()
        return math.isfinite(norm) and not diverged
