"""Gradients of each example apart, at the cost of their sum.

Autograd's gradient of a linear module's weight is one matrix product over all tokens of all
examples. A product for each example instead takes the same number of operations, so the per-example
gradients cost no more than the sum that they replace (Goodfellow 2015, arXiv:1510.01799, has the
idea for norms; Rochette et al. 2019, arXiv:1912.06015, for the gradients).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
        """Weights of linear modules of the model, float32."""

    @property
    def tensors(self) -> Sequence[Tensor]:
        """For each parameter the view of its leading rows and columns that is trained."""


class PerSampleGradients:
    """What backward passes leave: the gradient of each example for each trained tensor.

    Passes add up until ``take``, so an example may go through the model more than once.
    """

    def __init__(self, trained: Trained, *, rows: int) -> None:
        self._trained = trained
        self._rows = rows
        self._held: dict[int, Tensor] = {}

    def record(self, place: int, inputs: Tensor, gradient: Tensor) -> None:
        """Add the per-example gradient of the tensor at ``place`` of the trained ones.

        Args:
            place: index into ``trained.tensors``.
            inputs: of the linear module, ``(batch, …, in_features)``.
            gradient: of its outputs, ``(batch, …, out_features)``.

        Raises:
            RunError: an earlier pass had another number of examples, or the rows make no whole
                number of them.
        """
        rows, columns = self._trained.tensors[place].shape
        inputs = self._examples(inputs)[..., :columns].float()
        gradient = self._examples(gradient)[..., :rows].float()
        # Wide, not tall: a CPU multiplies the same numbers up to five times faster.
        short, long = (gradient, inputs) if rows <= columns else (inputs, gradient)
        result = torch.bmm(short.transpose(1, 2), long)
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
            than columns, ``(examples, columns, rows)``.

        Raises:
            RunError: so many losses are not one for each example of the batch, or a tensor is
                trained otherwise than as the weight of its linear module.
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
        shape: ``(rows, columns)``.
    """
    rows, columns = shape
    if rows <= columns:
        return gradient.reshape(rows, columns)
    return gradient.reshape(columns, rows).t().contiguous()


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
        BaseModelError: a parameter is not the weight of a plain linear module without bias; or,
            inside the block, a module's input has no dimension for the batch.
    """
    recorded = PerSampleGradients(trained, rows=rows)
    places = {id(parameter): place for place, parameter in enumerate(trained.parameters)}
    linears = {
        name: (module, place)
        for name, module in trained.model.named_modules()
        for parameter in module.parameters(recurse=False)
        if (place := places.get(id(parameter))) is not None
    }
    _require_plain(linears, count=len(places))
    try:
        for name, (module, place) in linears.items():
            module.forward = _recording(module, name, partial(recorded.record, place))
        yield recorded
    finally:
        for module, _ in linears.values():
            vars(module).pop("forward", None)


def _require_plain(linears: Mapping[str, tuple[nn.Module, int]], *, count: int) -> None:
    for name, (module, _) in linears.items():
        if type(module) is not nn.Linear or module.bias is not None:
            raise BaseModelError(
                f"{name} is a {type(module).__name__}: per-example gradients are computed for "
                "plain linear modules without bias. Choose other lora_target_modules."
            )
    if len({place for _, place in linears.values()}) < count:
        raise BaseModelError(
            "A trained factor belongs to no module of the model. Load the base model again."
        )


def _recording(module: nn.Linear, name: str, record: Record) -> Callable[[Tensor], Tensor]:
    """Return a module's forward function, the same but for the gradient of its weight."""

    def forward(inputs: Tensor) -> Tensor:
        if inputs.ndim < 3:
            raise BaseModelError(
                f"{name} gets tokens without a dimension for the batch, as experts of a mixture "
                "do: whose they are is not known. Choose other lora_target_modules."
            )
        kind = inputs.device.type
        if torch.is_autocast_enabled(kind):
            inputs = inputs.to(torch.get_autocast_dtype(kind))
        outputs: Tensor = _Linear.apply(inputs, module.weight, record)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return outputs

    return forward


class _Linear(torch.autograd.Function):
    """A linear map that gives what its weight's gradient is made of to ``record``."""

    @staticmethod
    def forward(  # noqa: PLR0917 - torch passes them by position
        ctx: Any,  # noqa: ANN401 - torch lets any attribute be set
        inputs: Tensor,
        weight: Tensor,
        record: Record,
    ) -> Tensor:
        ctx.save_for_backward(inputs)  # the weight apart: it is no activation to compute again
        ctx.weight, ctx.record = weight.to(inputs.dtype), record
        return F.linear(inputs, ctx.weight)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401 - as above
        gradient: Tensor,
    ) -> tuple[Tensor | None, None, None]:
        (inputs,) = ctx.saved_tensors
        with torch.autocast(inputs.device.type, enabled=False):
            ctx.record(inputs, gradient)
            wanted = ctx.needs_input_grad[0]
            return gradient @ ctx.weight if wanted else None, None, None


def _not_rows() -> RunError:
    return RunError(
        "The loss does not have one value for each row of the batch, or for each pair of rows in "
        "preference tuning, so per-example gradients cannot be told apart. Use another objective "
        "or another base model."
    )
