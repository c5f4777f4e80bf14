"""The part of an adapter that a round trains, as tensors that an optimiser can step."""

from collections.abc import Sequence

from torch import Tensor, nn

from fedlora.adapter import AdapterSpec


class TrainedPart:
    """Views of the leading components of some of an adapter's tensors; nothing else is trained.

    A view shares its memory with the model's parameter, so a step on it is a step of the model,
    while the components behind it stay as they are, whatever the optimiser does.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Sequence[nn.Parameter],
        *,
        whole: AdapterSpec,
        part: AdapterSpec,
    ) -> None:
        shapes = {tensor.name: tensor.shape for tensor in part.tensors}
        self.model = model
        self.parameters: list[nn.Parameter] = []
        """The model's own, in the order of ``part``."""
        self.tensors: list[Tensor] = []
        """The views, in the order of ``part``."""
        self.pooled = frozenset(
            place
            for place, tensor in enumerate(part.tensors)
            if not tensor.is_factor or (whole.heads and _is_outside_layers(tensor.module))
        )
        """Places of those whose modules may be given one vector for each example: of a classifier
        the head, and what stands between the layers and the head."""
        for parameter, tensor in zip(parameters, whole.tensors, strict=True):
            parameter.requires_grad_(tensor.name in shapes)  # what is not trained costs nothing
            if tensor.name in shapes:
                leading = tuple(map(slice, shapes[tensor.name]))
                self.parameters.append(parameter)
                self.tensors.append(parameter.detach()[leading])

    def take_gradients(self) -> None:
        """Move the parameters' gradients to the views."""
        for view, parameter in zip(self.tensors, self.parameters, strict=True):
            leading = tuple(map(slice, view.shape))
            view.grad = None if parameter.grad is None else parameter.grad[leading]
            parameter.grad = None


def _is_outside_layers(module: str) -> bool:
    """Tell whether a module is in none of the numbered layers, where tokens may be mixed up."""
    return not any(part.isdigit() for part in module.split("."))
