"""Sums in which each example has a bounded share."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fedlora.privacy.dp_sgd.self_check import require_within

_MARGIN = 1e-9
"""By how much clipping stays below the bound, relatively: more than float64 loses by rounding."""


class ClippedSum:
    """The sum over examples of gradients, each clipped: all that a private step may use of them.

    Guarantees:
        - An example changes ``values`` by at most ``clip_norm``, in L2 over all tensors together,
          after rounding too.
        - An example whose gradient is not finite counts as one whose gradient is zero.
        - In each call of ``add`` one of the clipped norms is computed again, in another way.

    References:
        Abadi et al. 2016, arXiv:1607.00133, algorithm 1.
    """

    def __init__(
        self, sizes: Sequence[int], *, clip_norm: float, device: torch.device | str = "cpu"
    ) -> None:
        self.clip_norm = clip_norm
        self.sizes = list(sizes)
        self.values = torch.zeros(sum(sizes), dtype=torch.float64, device=device)
        """``(sum(sizes),)`` float64: the tensors one after another, flat, as ``add`` gets them."""
        self.examples = 0
        self.unclipped = 0
        """Examples whose norm was at most ``clip_norm``."""
        self._views = self.values.split(self.sizes)
        self._calls = 0

    def add(self, gradients: Sequence[Tensor]) -> None:
        """Clip the gradients of some examples (at least one) and add them.

        Args:
            gradients: for each tensor ``(examples, …)`` float32. Those of examples that are not
                finite are overwritten.

        Raises:
            RunError: a clipped norm is above ``clip_norm``.
        """
        norms = _joint_norms(gradients)
        finite = norms.isfinite()
        if not finite.all():
            for gradient in gradients:
                gradient[~finite] = 0
            norms = norms.where(finite, 0)
        scales = (self.clip_norm * (1 - _MARGIN) / norms).clamp(max=1)
        for into, gradient in zip(self._views, gradients, strict=True):
            into.addmv_(gradient.flatten(1).double().t(), scales)
        self._require_one_within(gradients, scales)
        self.examples += len(norms)
        self.unclipped += int((norms <= self.clip_norm).sum())

    def _require_one_within(self, gradients: Sequence[Tensor], scales: Tensor) -> None:
        """Look at one example, at another place in each call."""
        place = self._calls % len(scales)
        self._calls += 1
        whole = torch.cat([gradient[place].flatten() for gradient in gradients]).double()
        require_within(float((whole * scales[place]).norm()), self.clip_norm)


def _joint_norms(gradients: Sequence[Tensor]) -> Tensor:
    """Return each example's L2 norm over all tensors, ``(examples,)`` float64.

    Finite exactly where all values are: squares of float32 numbers do not overflow float64.
    """
    norms = [torch.linalg.vector_norm(each.flatten(1).double(), dim=1) for each in gradients]
    joint: Tensor = torch.linalg.vector_norm(torch.stack(norms), dim=0)
    return joint
