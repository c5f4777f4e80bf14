"""An estimate of the memory that training takes, from shapes alone."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

_NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a weight in NF4: 4 bits, an 8-bit scale for 64 weights, a float32 scale for 256 of
those (Dettmers et al. 2023, arXiv:2305.14314, section 3)."""

_ADAPTER_BYTES = 4 * 4
"""Bytes of an adapter's value: itself, its gradient and Adam's two moments, in float32."""

_LOGIT_BYTES = 3 * 4
"""Bytes of a logit: itself, its log-softmax and its gradient, in float32."""

_KEPT = 1.2
"""What autograd keeps of a layer, over the inputs and outputs of its linear modules; 1.0 to 1.12
was measured on Llamas of 2.6 M and 30 M parameters in float32 and bfloat16."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What decides the memory of one training step besides the model."""

    dtype: torch.dtype
    """Of the base's weights and of the computation."""
    quantized: bool
    """The base's linear modules are held in NF4."""
    adapter_size: int
    """Values in the adapter."""
    examples: int
    length: int
    """Tokens of an example."""
    layers: int
    hidden_size: int
    vocabulary: int
    attention_heads: int
    """Heads whose ``(length, length)`` scores are kept; 0 if attention keeps none."""
    checkpointing: bool
    """Layers keep their input alone and compute the rest again."""


def estimate(model: nn.Module, linears: Mapping[str, nn.Linear], work: Workload) -> int:
    """Return the bytes of weights, adapter, optimiser, activations and logits at their peak.

    What the process takes for itself (interpreter, libraries, the accelerator's context) is not in
    it. Logits are counted as if every token were supervised.

    Args:
        model: the base, possibly on the meta device.
        linears: its linear modules by path, without the output head.
        work: what is trained, and how.
    """
    return (
        weight_bytes(model, linears, work)
        + work.adapter_size * _ADAPTER_BYTES
        + activation_bytes(linears, work)
        + work.examples * work.length * work.vocabulary * _LOGIT_BYTES
    )


def weight_bytes(model: nn.Module, linears: Mapping[str, nn.Linear], work: Workload) -> int:
    """Return the bytes of the base's weights."""
    values = sum(parameter.numel() for parameter in model.parameters())
    in_nf4 = sum(linear.weight.numel() for linear in linears.values()) if work.quantized else 0
    return int(in_nf4 * _NF4_BYTES + (values - in_nf4) * work.dtype.itemsize)


def activation_bytes(linears: Mapping[str, nn.Linear], work: Workload) -> int:
    """Return the bytes that autograd keeps between the forward and the backward pass.

    Attention scores are kept in float32 and, where that is another, in the computation's dtype.
    """
    tokens, itemsize = work.examples * work.length, work.dtype.itemsize
    widths = sum(linear.in_features + linear.out_features for linear in linears.values())
    score_bytes = 4 if work.dtype == torch.float32 else 4 + itemsize
    scores = work.layers * work.attention_heads * work.length * score_bytes
    layers = tokens * (_KEPT * widths * itemsize + scores)
    if work.checkpointing:
        inputs = tokens * _KEPT * work.hidden_size * itemsize * work.layers
        return int(inputs + layers / work.layers)
    return int(layers)
