"""Direct preference optimisation: which of two answers the adapter is to prefer.

References:
    Rafailov et al. 2023, arXiv:2305.18290, equation 7.
"""

import torch.nn.functional as F  # noqa: N812 - torch's own spelling
from torch import Tensor

from fedlora.adapter import AdapterState
from fedlora.training.base_model import BaseModel
from fedlora.training.batch import Batch
from fedlora.training.objectives.sft import token_losses


def dpo_margins(base: BaseModel, batch: Batch, *, reference: AdapterState | None) -> Tensor:
    """Return by how much more each pair's chosen answer is preferred than by the reference.

    An answer's probability is that of all its supervised tokens together; what is compared is
    ``log p(chosen) - log p(rejected)``, with the adapter that is on the base and with the
    reference. The reference is computed by the same model, before the adapter's own pass, without
    dropout and without a gradient.

    Args:
        base: the warm base model.
        batch: rows ``2i`` and ``2i + 1`` are the chosen and the rejected answer of pair ``i``.
        reference: the adapter to compare with; none for the base alone.

    Returns:
        ``(pairs,)`` float32 in nats, differentiable in the adapter.
    """
    with base.frozen(reference):
        expected = _preferences(base, batch)
    return _preferences(base, batch) - expected


def dpo_loss(margins: Tensor, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Return each pair's loss, the negative logarithm of ``sigmoid(beta * margin)``.

    Args:
        margins: ``(pairs,)``, of ``dpo_margins``.
        beta: how closely the adapter stays with the reference.
        label_smoothing: probability with which a preference is the wrong way round: the loss is
            the mean over both ways (Mitchell 2023, "A note on DPO with noisy preferences").

    Returns:
        ``(pairs,)`` float32 in nats.
    """
    right, wrong = -F.logsigmoid(beta * margins), -F.logsigmoid(-beta * margins)
    return (1 - label_smoothing) * right + label_smoothing * wrong


def _preferences(base: BaseModel, batch: Batch) -> Tensor:
    losses, _ = token_losses(base, batch)
    chosen, rejected = losses.view(-1, 2).unbind(dim=1)
    return rejected - chosen
