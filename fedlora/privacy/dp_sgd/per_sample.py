"""Gradients of each example apart, at the cost of their sum.

Autograd's gradient of a linear module's weight is one matrix product over all tokens of all
examples. A product for each example instead takes the same number of operations, so the per-example
gradients cost no more than the sum that they replace (Goodfellow 2015, arXiv:1510.01799, has the
idea for norms; Rochette et al. 2019, arXiv:1912.06015, for the gradients).
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own spelling
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fedlora.errors import BaseModelError, RunError

Record: TypeAlias = Callable[[Tensor, Tensor], None]
"""Is given a module's inputs and the gradient of its outputs."""


class Trained(Protocol):
    """What a private step trains; ``TrainedPart`` of the training layer is one."""

    @property
    def model(self) -> nn.Module:
        """The model whose parameters are trained."""

    @property
    def parameters(self) -> Sequence[nn.Parameter]:
        """Weights and biases of linear modules of the model, float32."""

    @property
    def tensors(self) -> Sequence[Tensor]:
        """For each parameter the view of its leading rows and columns that is trained."""

    @property
    def pooled(self) -> Collection[int]:
        """Places of the parameters whose modules may be given one vector for each example,
        ``(batch, in_features)``: what comes after the tokens of an example were pooled.
        """


class PerSampleGradients:
    """What backward passes leave: the gradient of each example for each trained tensor.

    Passes add up until ``take``, so an example may go through the model more than once.
    """

    def __init__(self, trained: Trained, *, rows: int) -> None:
        self._trained = trained
        self._rows = rows
        self._held: dict[int, Tensor] = {}

    def record(self, places: "_Places", inputs: Tensor, gradient: Tensor) -> None:
        """Add the per-example gradients of a module's trained tensors.

        Args:
            places: indices into ``trained.tensors``.
            inputs: of the linear module, ``(batch, …, in_features)``.
            gradient: of its outputs, ``(batch, …, out_features)``.

        Raises:
            RunError: an earlier pass had another number of examples, or the rows make no whole
                number of them.
        """
        inputs, gradient = self._examples(inputs), self._examples(gradient)
        if places.bias is not None:
            self._add(places.bias, gradient.float().sum(dim=1))
        rows, columns = self._trained.tensors[places.weight].shape
        inputs, gradient = inputs[..., :columns].float(), gradient[..., :rows].float()
        # Wide, not tall: a CPU multiplies the same numbers up to five times faster.
        short, long = (gradient, inputs) if rows <= columns else (inputs, gradient)
        self._add(places.weight, torch.bmm(short.transpose(1, 2), long))

    def _add(self, place: int, result: Tensor) -> None:
        held = self._held.get(place)
        if held is not None and held.shape != result.shape:
            raise _not_rows()
        self._held[place] = result if held is None else held.add_(result)

    def _examples(self, values: Tensor) -> Tensor:
        """Return ``(examples, tokens, features)``: all tokens of an example, row after row."""
        if len(values) % self._rows:
            raise _not_rows()
        return values.reshape(len(values) // self._rows, -1, values.shape[-1])

    def take(self, examples: int) -> list[Tensor]:
        """Return the gradients and forget them.

        Args:
            examples: number of losses that were backpropagated.

        Returns:
            For each trained tensor ``(examples, rows, columns)`` float32, or, if it has more rows
            than columns, ``(examples, columns, rows)``; for a bias ``(examples, size)``.

        Raises:
            RunError: so many losses are not one for each example of the batch, or a tensor is
                trained otherwise than as the weight or bias of its linear module.
        """
        held, self._held = self._held, {}
        if any(parameter.grad is not None for parameter in self._trained.parameters):
            raise RunError(
                "A trained factor is used outside its linear module, where its per-example "
                "gradient is not known. Choose other lora_target_modules."
            )
        if len(held) < len(self._trained.tensors):
            raise RunError(
                "A trained factor took no part in the loss. Leave modules that the base model does "
                "not use out of lora_target_modules."
            )
        if any(len(gradient) != examples for gradient in held.values()):
            raise _not_rows()
        return [held[place] for place in range(len(held))]


def in_shape(gradient: Tensor, shape: Sequence[int]) -> Tensor:
    """Return one gradient for a tensor of ``shape``, contiguous, from what ``take`` returns.

    Args:
        gradient: of all values of the tensor, possibly flat.
        shape: ``(rows, columns)``, or ``(size,)`` of a bias.
    """
    if len(shape) < 2 or shape[0] <= shape[1]:
        return gradient.reshape(*shape)
    return gradient.reshape(*reversed(shape)).t().contiguous()


@contextmanager
def per_sample_gradients(trained: Trained, *, rows: int = 1) -> Iterator[PerSampleGradients]:
    """Record per-example gradients of what is trained, instead of their sum, inside the block.

    Each row of a batch, or each ``rows`` that follow one another, must be one example, as the two
    answers of a pair are: its gradient is the sum over its rows. The model computes what it did
    before: in autocast's dtype, with dropout, over a base of any dtype or in NF4, with
    checkpointing of both kinds.

    Guarantees:
        - ``parameter.grad`` stays ``None``.
        - The model is as before after the block.

    Raises:
        BaseModelError: a parameter is not the weight or the bias of a plain linear module, or one
            that has a bias is not trained whole; or, inside the block, a module's input has no
            dimension for the batch.
    """
    recorded = PerSampleGradients(trained, rows=rows)
    linears = _linears(trained)
    try:
        for name, (module, places) in linears.items():
            pooled = places.weight in trained.pooled
            record = partial(recorded.record, places)
            vars(module)["forward"] = _recording(module, name, record, pooled=pooled)
        yield recorded
    finally:
        for module, _ in linears.values():
            vars(module).pop("forward", None)


@dataclass(frozen=True)
class _Places:
    """Where a linear module's parameters are among the trained ones."""

    weight: int
    bias: int | None


def _linears(trained: Trained) -> dict[str, tuple[nn.Linear, _Places]]:
    """Return the modules whose weights, and biases if they have any, are trained."""
    places = {id(parameter): place for place, parameter in enumerate(trained.parameters)}
    linears: dict[str, tuple[nn.Linear, _Places]] = {}
    for name, module in trained.model.named_modules():
        own = [id(parameter) for parameter in module.parameters(recurse=False)]
        if not any(parameter in places for parameter in own):
            continue
        if type(module) is not nn.Linear or any(parameter not in places for parameter in own):
            raise BaseModelError(
                f"{name} is a {type(module).__name__}: per-example gradients are computed for "
                "plain linear modules without bias, or with one that is trained too. Choose other "
                "lora_target_modules."
            )
        weight, *bias = (places[parameter] for parameter in own)
        linears[name] = (module, _Places(weight, bias[0] if bias else None))
    found = {place for _, of in linears.values() for place in (of.weight, of.bias)}
    if not found >= set(places.values()):
        raise BaseModelError(
            "A trained factor belongs to no module of the model. Load the base model again."
        )
    return linears


def _recording(
    module: nn.Linear, name: str, record: Record, *, pooled: bool
) -> Callable[[Tensor], Tensor]:
    """Return a module's forward function, the same but for the gradients of its parameters."""

    def forward(inputs: Tensor) -> Tensor:
        if inputs.ndim < (2 if pooled else 3):
            raise BaseModelError(
                f"{name} gets tokens without a dimension for the batch, as experts of a mixture "
                "do: whose they are is not known. Choose other lora_target_modules."
            )
        kind = inputs.device.type
        if torch.is_autocast_enabled(kind):
            inputs = inputs.to(torch.get_autocast_dtype(kind))
        outputs: Tensor = _Linear.apply(inputs, module.weight, module.bias, record)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return outputs

    return forward


class _Linear(torch.autograd.Function):
    """A linear map that gives what its parameters' gradients are made of to ``record``."""

    @staticmethod
    def forward(  # noqa: PLR0917 - torch passes them by position
        ctx: Any,  # noqa: ANN401 - torch lets any attribute be set
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        record: Record,
    ) -> Tensor:
        ctx.save_for_backward(inputs)  # the weight apart: it is no activation to compute again
        ctx.weight, ctx.record = weight.to(inputs.dtype), record
        return F.linear(inputs, ctx.weight, None if bias is None else bias.to(inputs.dtype))

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401 - as above
        gradient: Tensor,
    ) -> tuple[Tensor | None, None, None, None]:
        (inputs,) = ctx.saved_tensors
        with torch.autocast(inputs.device.type, enabled=False):
            ctx.record(inputs, gradient)
            wanted = ctx.needs_input_grad[0]
            return gradient @ ctx.weight if wanted else None, None, None, None


def _not_rows() -> RunError:
    return RunError(
        "The loss does not have one value for each row of the batch, or for each pair of rows in "
        "preference tuning, so per-example gradients cannot be told apart. Use another objective "
        "or another base model."
    )
