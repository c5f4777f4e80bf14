"""bitsandbytes' AdamW: its state in 8 bits, or in memory that a CUDA device pages out.

Dettmers et al. 2022, arXiv:2110.02861.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from bitsandbytes.optim.adamw import AdamW8bit, PagedAdamW8bit, PagedAdamW32bit
from torch import Tensor

from fedlora.errors import BaseModelError

_CLASSES: Mapping[str, Any] = {
    "adamw_8bit": AdamW8bit,
    "paged_adamw_32bit": PagedAdamW32bit,
    "paged_adamw_8bit": PagedAdamW8bit,
}


def bnb_adamw(tensors: Sequence[Tensor], *, name: str, **keys: Any) -> torch.optim.Optimizer:  # noqa: ANN401 - torch's own keywords
    """Return an optimiser of contiguous tensors.

    Tensors of fewer than 4,096 values keep a state of 32 bits.

    Raises:
        BaseModelError: as ``require_optimizer``.
    """
    require_optimizer(name, tensors[0].device.type)
    optimizer: torch.optim.Optimizer = _CLASSES[name](tensors, **keys)
    return optimizer


def require_optimizer(name: str, device: str) -> None:
    """Do nothing if an optimiser is to be had on a kind of device.

    Raises:
        BaseModelError: bitsandbytes has it not there, or falls back to what was not asked for.
    """
    if name.startswith("paged_") and device != "cuda":
        instead = "adamw_8bit" if name.endswith("_8bit") else "adamw_torch"
        raise BaseModelError(
            f"optimizer: {name} pages its state out of a CUDA device's memory, but the training is "
            f"on {device}, where bitsandbytes does not page: take {instead}."
        )
    if name == "adamw_8bit" and device not in {"cuda", "cpu"}:
        raise BaseModelError(
            f"optimizer: {name} is not to be had on {device}: bitsandbytes steps in 8 bits on cuda "
            "and cpu. Take adamw_torch."
        )
