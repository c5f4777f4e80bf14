"""Slow, obvious ways to compute what the library computes fast."""

import struct
from collections.abc import Mapping, Sequence
from fractions import Fraction

import torch
from torch import Tensor, nn

from fedlora.adapter import AdapterState


def loss_of_each_example(model: nn.Module, input_ids: Tensor, labels: Tensor) -> Tensor:
    """Return each example's mean cross-entropy, one example and one token at a time, unpadded.

    Args:
        model: a causal language model of transformers.
        input_ids: ``(batch, length)``, padded on the right.
        labels: ``(batch, length)``, -100 where not supervised.

    Returns:
        ``(batch,)``; zero where nothing is supervised.
    """
    losses = []
    for tokens, targets in zip(input_ids, labels, strict=True):
        places = (targets != -100).nonzero().flatten().tolist()
        total = torch.zeros(())
        for place in places:
            logits = model(input_ids=tokens[None, :place]).logits[0, -1].float()
            total = total - logits.log_softmax(dim=0)[targets[place]]
        losses.append(total / max(len(places), 1))
    return torch.stack(losses)


def weighted_mean(rows: Sequence[Sequence[float]], weights: Sequence[float]) -> list[float]:
    """Return the mean of each column, one column at a time, in exact fractions.

    Args:
        rows: one per client, equally long.
        weights: one per client, positive.
    """
    total = sum(Fraction(weight) for weight in weights)
    columns = zip(*rows, strict=True)
    return [
        float(sum(Fraction(w) * Fraction(v) for w, v in zip(weights, column, strict=True)) / total)
        for column in columns
    ]


def dense_products(state: AdapterState) -> dict[str, Tensor]:
    """Return each module's ``(out, in)`` weight change in float64, and each head by its name."""
    heads = {name: values.double() for name, values in state.heads()}
    return heads | {
        module: state.spec.scaling * up.double() @ down.double()
        for module, down, up in state.pairs()
    }


def nearest_of_rank(matrix: Tensor, rank: int) -> Tensor:
    """Return the nearest matrix of at most ``rank``, from a full decomposition."""
    u, singular, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank] * singular[:rank] @ vh[:rank]


def nearest_adapter(state: AdapterState, dense: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what an adapter like ``state`` can be nearest to ``dense``: no rank cuts a head."""
    heads = dict(state.heads())
    return {
        name: matrix if name in heads else nearest_of_rank(matrix, state.spec.rank)
        for name, matrix in dense.items()
    }


def rows_of_int8(block: bytes, rank: int, width: int) -> list[list[float]]:
    """Return the rows of an int8 block, read number by number as the .proto file says."""
    scales = struct.unpack_from(f"<{rank}f", block)
    codes = struct.unpack_from(f"<{rank * width}b", block, 4 * rank)
    return [[codes[k * width + i] * scales[k] for i in range(width)] for k in range(rank)]


def rows_of_nf4(block: bytes, rank: int, width: int, levels: Sequence[float]) -> list[list[float]]:
    """Return the rows of an NF4 block, read number by number as the .proto file says."""
    peaks, blocks = struct.unpack_from(f"<{rank}f", block), -(-width // 64)
    steps, packed = block[4 * rank :], block[4 * rank + rank * blocks :]

    def value(k: int, i: int) -> float:
        place = k * width + i
        code = packed[place // 2] >> 4 if place % 2 == 0 else packed[place // 2] & 15
        return levels[code] * peaks[k] * steps[k * blocks + i // 64] / 255

    return [[value(k, i) for i in range(width)] for k in range(rank)]
