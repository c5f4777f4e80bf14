"""Supervised fine-tuning.

A mean over the *batch's* tokens, which is what ``labels=`` computes in transformers, would let one
example change the weight of all others: it has no bounded sensitivity under differential privacy.
"""

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own spelling
from torch import Tensor

from fedlora.training.base_model import BaseModel
from fedlora.training.batch import Batch, supervised


def sft_loss(base: BaseModel, batch: Batch) -> Tensor:
    """Return each example's mean loss over its own supervised tokens.

    Returns:
        ``(batch,)`` float32 in nats per token; zero for an example without supervised tokens.
    """
    losses, tokens = token_losses(base, batch)
    return losses / tokens.clamp(min=1)


def token_losses(base: BaseModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return each example's summed loss and its number of supervised tokens.

    Logits are computed only where the next token is supervised.

    Returns:
        ``(batch,)`` float32 in nats, and ``(batch,)`` int64.
    """
    labels = batch.labels.to(base.device)
    mask = supervised(batch).to(base.device)
    logits = base.logits(batch.input_ids, keep=F.pad(mask, (0, 1)))
    losses = F.cross_entropy(logits, labels[:, 1:][mask], reduction="none")
    per_place = torch.zeros_like(mask, dtype=torch.float32).masked_scatter(mask, losses)
    return per_place.sum(dim=1), mask.sum(dim=1)
