"""Slow, obvious ways to compute sums of clipped gradients: one example after another."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fedlora.training.base_model import BaseModel
from fedlora.training.base_model.trained_part import TrainedPart
from fedlora.training.objectives import Objective, sft_loss
from tests.tiny_models import Tokens


def clipped_sum(gradients: list[Tensor], clip_norm: float) -> Tensor:
    """Return the sum of vectors, each scaled down to ``clip_norm`` if it is longer."""
    total = torch.zeros_like(gradients[0], dtype=torch.float64)
    for gradient in gradients:
        norm = float(gradient.double().norm())
        total += gradient.double() * min(1, clip_norm / norm if norm else 1)
    return total


def alone(
    base: BaseModel,
    batch: Tokens,
    trained: TrainedPart,
    *,
    objective: Objective = sft_loss,
    rows: int = 1,
) -> list[Tensor]:
    """Return each example's flat gradient from autograd, alone in its batch, of ``rows`` rows."""
    gradients = []
    for index in range(len(batch.labels) // rows):
        objective(base, batch.example(index, rows=rows)).sum().backward()
        trained.take_gradients()
        gradients.append(torch.cat([tensor.grad.flatten() for tensor in trained.tensors]))
        for tensor in trained.tensors:
            tensor.grad = None
    return gradients


def one_loss_at_a_time(
    losses: Callable[[], Tensor], trained: TrainedPart, *, count: int, dtype: torch.dtype
) -> list[Tensor]:
    """Return the flat gradient of each of ``count`` losses, all computed anew for each.

    A factor's gradient is made from what its module got and what came back, token by token, in
    float64: autograd's own would be rounded to ``dtype``, that of the computation.
    """
    gradients = []
    for row in range(count):
        sums = [torch.zeros(tensor.shape, dtype=torch.float64) for tensor in trained.tensors]
        hooks = _watch(trained, sums, dtype)
        losses()[row].backward()
        for hook in hooks:
            hook.remove()
        for parameter in trained.parameters:
            parameter.grad = None
        gradients.append(torch.cat([each.flatten() for each in sums]))
    return gradients


def _watch(trained: TrainedPart, sums: list[Tensor], dtype: torch.dtype) -> list[RemovableHandle]:
    """Add to ``sums`` what each trained tensor's module gets and is given back."""

    def look(into: Tensor, _: nn.Module, inputs: tuple[Tensor], outputs: Tensor) -> None:
        def add(gradient: Tensor) -> None:
            got = inputs[0].detach().to(dtype).double()
            whole = torch.einsum("bto,bti->oi", gradient.double(), got)
            into.add_(whole[: into.shape[0], : into.shape[1]])

        if outputs.requires_grad:
            outputs.register_hook(add)

    places = {id(parameter): place for place, parameter in enumerate(trained.parameters)}
    return [
        module.register_forward_hook(partial(look, sums[places[id(parameter)]]))
        for module in trained.model.modules()
        for parameter in module.parameters(recurse=False)
        if id(parameter) in places
    ]
