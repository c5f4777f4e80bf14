"""Sequence classification: which of the labels a text has."""

from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own spelling
from torch import Tensor

from fedlora.training.base_model import BaseModel


class LabelledBatch(Protocol):
    """Tokenised texts, padded on the right to a common length, and their classes."""

    @property
    def input_ids(self) -> Tensor:
        """``(batch, length)`` int64."""

    @property
    def attention_mask(self) -> Tensor:
        """``(batch, length)`` int64, 0 where padded."""

    @property
    def labels(self) -> Tensor:
        """``(batch,)`` int64."""


def label_loss(base: BaseModel, batch: LabelledBatch) -> Tensor:
    """Return the cross-entropy of each text's label.

    Returns:
        ``(batch,)`` float32 in nats.
    """
    logits = base.class_logits(batch.input_ids, batch.attention_mask)
    return F.cross_entropy(logits, batch.labels.to(base.device), reduction="none")


def label_losses(base: BaseModel, batch: LabelledBatch) -> tuple[Tensor, Tensor]:
    """Return each text's loss, and one for the one label that it has: what an evaluation sums.

    Returns:
        ``(batch,)`` float32 in nats, and ``(batch,)`` int64.
    """
    losses = label_loss(base, batch)
    return losses, torch.ones_like(losses, dtype=torch.int64)


@torch.no_grad()
def confusion(base: BaseModel, batch: LabelledBatch) -> Tensor:
    """Count each text by its label and by the label that the model gives it.

    Counts of disjoint rows add up. Their diagonal over their sum is the accuracy; of class c, the
    diagonal over the sum of row c is the recall, over that of column c the precision.

    Returns:
        ``(classes, classes)`` int64 on the CPU, rows by label, columns by the model's.
    """
    logits = base.class_logits(batch.input_ids, batch.attention_mask)
    classes = logits.shape[1]
    places = batch.labels.to(base.device) * classes + logits.argmax(dim=1)
    return torch.bincount(places, minlength=classes**2).view(classes, classes).cpu()
