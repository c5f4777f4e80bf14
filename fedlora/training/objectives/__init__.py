"""Objectives: each gives one loss per example, so that a step is a plain sum over examples."""

from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor

from fedlora.training.base_model import BaseModel
from fedlora.training.objectives.classification import confusion, label_loss, label_losses
from fedlora.training.objectives.sft import sft_loss, token_losses

Objective: TypeAlias = Callable[[BaseModel, Any], Tensor]
"""Gives the differentiable float32 loss of each example of a batch of its kind, ``(batch,)``."""

__all__ = [
    "Objective",
    "confusion",
    "label_loss",
    "label_losses",
    "sft_loss",
    "token_losses",
]
