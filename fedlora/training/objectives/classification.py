"""Sequence classification: which of the labels a text has."""

from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own spelling
from torch import Tensor

from fedlora.training.base_model import BaseModel
from fedlora.training.evaluation import Evaluation, Share

_MOST_CLASSES = 100
"""Of more, none is counted by itself."""


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
    logits, labels = _logits(base, batch)
    return F.cross_entropy(logits, labels, reduction="none")


def label_measure(base: BaseModel, batch: LabelledBatch) -> Evaluation:
    """Return the loss of the texts, how many labels are right, and the F1 of each class.

    With more than a hundred classes the accuracy alone.
    """
    logits, labels = _logits(base, batch)
    classes, guessed = logits.shape[1], logits.argmax(dim=1)
    shares = {"label_accuracy": Share.of(guessed == labels)}
    if classes <= _MOST_CLASSES:
        kinds = labels[guessed == labels], guessed, labels
        counts = (torch.bincount(kind, minlength=classes).tolist() for kind in kinds)
        for place, (hits, predicted, there) in enumerate(zip(*counts, strict=True)):
            shares[f"f1.{place}"] = Share(total=2 * hits, count=predicted + there)
    losses = F.cross_entropy(logits, labels, reduction="none")
    loss_sum = float(losses.sum(dtype=torch.float64))
    return Evaluation(loss_sum=loss_sum, tokens=len(labels), shares=shares)


def _logits(base: BaseModel, batch: LabelledBatch) -> tuple[Tensor, Tensor]:
    """Return the logits of each text's labels, ``(batch, classes)``, and its class."""
    logits = base.class_logits(batch.input_ids, batch.attention_mask)
    return logits, batch.labels.to(base.device)
