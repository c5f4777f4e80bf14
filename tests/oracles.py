"""Slow, obvious ways to compute what the library computes fast."""

from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor, nn


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
