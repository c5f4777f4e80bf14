"""Objectives: each gives one loss per example, so that a step is a plain sum over examples."""

from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor

from fedlora.training.base_model import BaseModel
from fedlora.training.objectives.classification import label_loss, label_measure
from fedlora.training.objectives.dpo import dpo_loss, dpo_margins
from fedlora.training.objectives.sft import sft_loss, sft_measure, token_losses

Objective: TypeAlias = Callable[[BaseModel, Any], Tensor]
"""Gives the differentiable float32 loss of each example of a batch of its kind, ``(examples,)``."""

__all__ = [
    "Objective",
    "dpo_loss",
    "dpo_margins",
    "label_loss",
    "label_measure",
    "sft_loss",
    "sft_measure",
    "token_losses",
]
