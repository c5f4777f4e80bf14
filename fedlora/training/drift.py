"""What keeps a site's steps from drifting to an optimum of its own.

Both are functions of what was received and of the steps that were taken, never of the data beside
them: where each step's gradient is private, so is what is made of it here, at no further cost
(post-processing).
"""

import torch
from torch import Tensor

from fedlora.adapter import AdapterState
from fedlora.training.base_model.trained_part import TrainedPart


class Drift:
    """The terms of one training.

    FedProx adds ``proximal · (w - received)`` to each gradient, after it was clipped and noised:
    the gradient of ``proximal / 2 · |w - received|²``. Here w are the trained factors, not the
    product B·A: the term is another in another gauge, and holds the product by holding its factors.

    SCAFFOLD's correction is subtracted from each step, times its learning rate. With plain SGD that
    is the paper's correction of the gradient; with any other optimiser it corrects the direction
    that the optimiser makes of the gradients, so that clipping and Adam's scale leave it as it is.

    References:
        Li et al. 2020, arXiv:1812.06127, algorithm 2; Karimireddy et al. 2020, arXiv:1910.06378,
        algorithm 1.
    """

    def __init__(
        self, trained: TrainedPart, *, proximal: float, correction: AdapterState | None
    ) -> None:
        views = trained.tensors
        self._proximal = proximal
        self._pulled = [(view, view.clone()) for view in views] if proximal else []
        self._corrected: list[tuple[Tensor, Tensor]] = []
        if correction is not None:
            pieces = [values.to(views[0].device) for _, values in correction.factors()]
            self._corrected = list(zip(views, pieces, strict=True))

    @torch.no_grad()
    def pull(self) -> None:
        """Add the proximal term to the gradients."""
        for view, received in self._pulled:
            term = self._proximal * (view - received)
            view.grad = term if view.grad is None else view.grad.add_(term)

    @torch.no_grad()
    def correct(self, learning_rate: float) -> None:
        """Correct the step that was taken."""
        for view, correction in self._corrected:
            view.sub_(correction, alpha=learning_rate)
