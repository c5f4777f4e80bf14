"""From the losses of a step's examples to the gradient that the optimiser steps with."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, TypeAlias

from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from fedlora.recipe import Recipe
from fedlora.training.base_model.trained_part import TrainedPart


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
            Whether the optimiser can step with it.
        """


GradientOf: TypeAlias = Callable[[TrainedPart], AbstractContextManager[Gradient]]
"""Makes gradients for what is trained, for as long as the context is open."""


def plain_gradient(recipe: Recipe) -> GradientOf:
    """Return how to train without privacy.

    The gradient is the sum of the examples' gradients over ``recipe.batch_size``, the *expected*
    number of examples, clipped to ``recipe.max_grad_norm``.
    """
    return lambda trained: nullcontext(_PlainGradient(trained, recipe))


class _PlainGradient:
    def __init__(self, trained: TrainedPart, recipe: Recipe) -> None:
        self._trained = trained
        self._recipe = recipe
        self._finite = True

    def add(self, losses: Tensor) -> None:
        loss = losses.sum()
        (loss / self._recipe.batch_size).backward()
        self._finite = self._finite and math.isfinite(loss.item())

    def finish(self) -> bool:
        self._trained.take_gradients()
        norm = clip_grad_norm_(self._trained.tensors, self._recipe.max_grad_norm)
        finite, self._finite = self._finite and math.isfinite(norm), True
        return finite
