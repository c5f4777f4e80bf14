"""The optimisers that a recipe can name, on the views that a round trains."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fedlora.sections import TrainingKeys
from fedlora.training.base_model import bnb_adamw
from fedlora.training.base_model.trained_part import TrainedPart


class Optimizer:
    """Steps what is trained by the gradients on it.

    torch's fused steps take tensors and gradients for contiguous memory, and would change other
    values, or by others, where they are not: of such a view a copy is stepped, and the view set to
    it.
    """

    def __init__(self, trained: TrainedPart, keys: TrainingKeys) -> None:
        """Begin afresh.

        Raises:
            BaseModelError: the optimiser is not to be had on this device.
        """
        self._pairs = [(view, view.contiguous()) for view in trained.tensors]
        self._optimizer = _new([tensor for _, tensor in self._pairs], keys)

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Take a step and drop the gradients."""
        for view, tensor in self._pairs:
            tensor.copy_(view)
            tensor.grad = None if view.grad is None else view.grad.contiguous()
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        for view, tensor in self._pairs:
            view.copy_(tensor)
            view.grad = tensor.grad = None


def _new(tensors: Sequence[Tensor], keys: TrainingKeys) -> torch.optim.Optimizer:
    decay, lr = keys.weight_decay, keys.learning_rate
    if keys.optimizer == "sgd":
        momentum = keys.sgd_momentum
        return torch.optim.SGD(tensors, lr=lr, momentum=momentum, weight_decay=decay, fused=True)
    betas, eps = (keys.adam_beta1, keys.adam_beta2), keys.adam_epsilon
    if keys.optimizer == "adamw_torch":
        return torch.optim.AdamW(
            tensors, lr=lr, betas=betas, eps=eps, weight_decay=decay, fused=True
        )
    return bnb_adamw(tensors, name=keys.optimizer, lr=lr, betas=betas, eps=eps, weight_decay=decay)
