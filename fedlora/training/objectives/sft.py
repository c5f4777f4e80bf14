"""Supervised fine-tuning.

A mean over the *batch's* tokens, which is what ``labels=`` computes in transformers, would let one
example change the weight of all others: it has no bounded sensitivity under differential privacy.
"""

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own spelling
from torch import Tensor

from fedlora.training.base_model import BaseModel
from fedlora.training.batch import Batch, supervised
from fedlora.training.evaluation import Evaluation, Share


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
    mask, logits, labels = _supervised_logits(base, batch)
    losses = F.cross_entropy(logits, labels, reduction="none")
    per_place = torch.zeros_like(mask, dtype=torch.float32).masked_scatter(mask, losses)
    return per_place.sum(dim=1), mask.sum(dim=1)


def sft_measure(base: BaseModel, batch: Batch) -> Evaluation:
    """Return the loss over supervised tokens, and how many are right.

    A token is right when the model, given all tokens before it, finds it the most probable; a row
    is an exact match when all of its supervised tokens are.
    """
    mask, logits, labels = _supervised_logits(base, batch)
    losses = F.cross_entropy(logits, labels, reduction="none")
    right = torch.zeros_like(mask).masked_scatter(mask, logits.argmax(dim=-1) == labels)
    rows = mask.any(dim=1)
    exact = rows & (right == mask).all(dim=1)
    tokens = len(labels)
    return Evaluation(
        loss_sum=float(losses.sum(dtype=torch.float64)),
        tokens=tokens,
        shares={
            "token_accuracy": Share(total=int(right.sum()), count=tokens),
            "exact_match": Share(total=int(exact.sum()), count=int(rows.sum())),
        },
    )


def _supervised_logits(base: BaseModel, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Return where tokens are supervised, ``(batch, length - 1)``, their logits and the tokens."""
    mask = supervised(batch).to(base.device)
    logits = base.logits(batch.input_ids, keep=F.pad(mask, (0, 1)))
    return mask, logits, batch.labels.to(base.device)[:, 1:][mask]
