"""An estimate of the memory that training takes, from shapes alone."""

from dataclasses import dataclass

import torch
from torch import nn

from fedlora.sections import Quantization
from fedlora.training.base_model.targets import Shapes

_QUANTIZED_BYTES = {"nf4": 0.5 + 1 / 64 + 4 / (64 * 256), "int8": 1.0}
"""Bytes of a quantised weight. In NF4 4 bits, an 8-bit scale for 64 weights and a float32 scale for
256 of those (Dettmers et al. 2023, arXiv:2305.14314, section 3); in 8 bits a scale for each row."""

_ADAPTER_BYTES = 4 * 4
"""Bytes of an adapter's value: itself, its gradient and Adam's two moments, in float32."""

_PRIVATE_BYTES = 2 * 8
"""Bytes of an adapter's value under privacy: the clipped sum and the noise, in float64."""

_LOGIT_BYTES = 3 * 4
"""Bytes of a logit: itself, its log-softmax and its gradient, in float32."""

_KEPT = 1.2
"""What autograd keeps of a layer, over the inputs and outputs of its linear modules; 1.0 to 1.12
was measured on Llamas of 2.6 M and 30 M parameters in float32 and bfloat16."""

_BACKWARD = 1.15
"""What a backward pass has in hand at its peak, over what autograd kept for it."""

MARGIN = 0.4
"""By how much the estimate may be above what is measured, as a share of that. It was 0.7 to 1.2
times the peak of models of 9 M to 84 M parameters on a CPU: dense and mixtures, however held."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What decides the memory of one training step besides the model."""

    dtype: torch.dtype
    """Of the base's weights and of the computation."""
    quantization: Quantization
    """Of the base's linear modules."""
    adapter_size: int
    """Values in the adapter."""
    examples: int
    length: int
    """Tokens of an example."""
    layers: int
    widths: int
    """Inputs and outputs of all that a token is multiplied by: linear modules, and its experts."""
    hidden_size: int
    vocabulary: int
    attention_heads: int
    """Heads whose ``(length, length)`` scores are kept; 0 if attention keeps none."""
    private: bool
    """Gradients of single examples are kept, and their sum in float64."""
    checkpointing: bool
    """Layers keep their input alone and compute the rest again."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes that training takes at its peak, by what they are for.

    What the process takes for itself (interpreter, libraries, the accelerator's context) is not in
    it. Examples are counted as if all were of the greatest length and supervised throughout.
    """

    weights: int
    adapter: int
    """With its gradient and the optimiser's state."""
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.adapter + self.activations + self.logits

    def fits(self, room: int) -> bool:
        """Tell whether it fits, were the estimate too high by as much as it may be."""
        return self.total <= room * (1 + MARGIN)

    def __str__(self) -> str:
        """Return the sum and its parts in GB."""
        parts = {
            "weights": self.weights,
            "adapter and optimiser": self.adapter,
            "activations": self.activations,
            "logits": self.logits,
        }
        shown = ", ".join(f"{name} {gigabytes(value)}" for name, value in parts.items())
        return f"{gigabytes(self.total)} GB ({shown})"


def gigabytes(value: int) -> str:
    """Return bytes as GB, with two digits that count, or all before the point."""
    return f"{value / 1e9:,.0f}" if value > 1e11 else f"{value / 1e9:.2g}"


def estimate(model: nn.Module, linears: Shapes, work: Workload) -> Memory:
    """Return what training will take.

    Args:
        model: the base, possibly on the meta device.
        linears: its linear modules, without the output head.
        work: what is trained, and how.
    """
    return Memory(
        weights=weight_bytes(model, linears, quantization=work.quantization, dtype=work.dtype),
        adapter=adapter_bytes(work),
        activations=int(activation_bytes(work) * _BACKWARD),
        logits=int(work.examples * work.length * work.vocabulary * _LOGIT_BYTES * _BACKWARD),
    )


def weight_bytes(
    model: nn.Module, linears: Shapes, *, quantization: Quantization, dtype: torch.dtype
) -> int:
    """Return the bytes of the base's weights."""
    values = sum(parameter.numel() for parameter in model.parameters())
    if quantization == "none":
        return values * dtype.itemsize
    quantized = sum(rows * columns for rows, columns in linears.values())
    return int(quantized * _QUANTIZED_BYTES[quantization] + (values - quantized) * dtype.itemsize)


def adapter_bytes(work: Workload) -> int:
    """Return the bytes of the adapter, its gradient and the optimiser's state."""
    examples = work.examples * 4 + _PRIVATE_BYTES if work.private else 0
    return work.adapter_size * (_ADAPTER_BYTES + examples)


def activation_bytes(work: Workload) -> int:
    """Return the bytes that autograd keeps between the forward and the backward pass.

    Attention scores are kept in float32 and, where that is another, in the computation's dtype.
    """
    tokens, itemsize = work.examples * work.length, work.dtype.itemsize
    score_bytes = 4 if work.dtype == torch.float32 else 4 + itemsize
    scores = work.layers * work.attention_heads * work.length * score_bytes
    layers = tokens * (_KEPT * work.widths * itemsize + scores)
    if work.checkpointing:
        inputs = tokens * _KEPT * work.hidden_size * itemsize * work.layers
        return int(inputs + layers / work.layers)
    return int(layers)
