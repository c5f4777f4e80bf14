"""Example-level DP-SGD: the gradient of a private step, and what must hold for it."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fedlora.errors import BudgetError, RunError
from fedlora.privacy.charge import Charge
from fedlora.privacy.dp_sgd.adaptive_clip import AdaptiveClip
from fedlora.privacy.dp_sgd.clipping import ClippedSum
from fedlora.privacy.dp_sgd.per_sample import (
    PerSampleGradients,
    Trained,
    in_shape,
    per_sample_gradients,
)
from fedlora.privacy.dp_sgd.self_check import require_moved, require_noise
from fedlora.privacy.source import NoiseSource

_TRIAL_SIDE = 512
"""Side of the square of values on which the noise is tried: enough to see 1.2 % of deviation."""


class DpSgd:
    """A mechanism that makes the gradients of as many private steps as were charged.

    A step's gradient is the sum of its examples' gradients, each clipped to ``clip_norm`` over all
    trained tensors together, plus normal noise, over the *expected* number of examples.

    Guarantees:
        - A step is the Gaussian mechanism that ``charge`` describes, if its examples are a Poisson
          sample of rate ``charge.sampling_rate`` and the loss of an example depends on no other.
        - No more steps are taken than were charged.
        - The gradient is finite, whatever the losses are.

    What it does not guarantee: the model computes in floating point, and an example that makes its
    batch longer or larger can change how the others' losses round. A batch of 16 that one example
    made longer changed by 1.0004 clip norms in bfloat16, by 1.0000002 in float32.

    References:
        Abadi et al. 2016, arXiv:1607.00133, algorithm 1.
    """

    def __init__(
        self,
        charge: Charge,
        *,
        expected_examples: float,
        source: NoiseSource,
        adaptive: AdaptiveClip | None = None,
        rows: int = 1,
    ) -> None:
        """Prepare the steps.

        Args:
            charge: what was committed to the ledger; its sensitivity is the first clip norm.
            expected_examples: of a step; never the number that came.
            source: of the noise.
            adaptive: how the clip norm moves from step to step; if not given, it stays.
            rows: of a batch that are one example, and are clipped together: two for a pair.

        Raises:
            RunError: ``charge`` is of another mechanism, or a number is out of its range.
        """
        _require_fit(charge, expected_examples)
        self.clip_norm = charge.sensitivity
        """Of the next step; it depends on private data through what was released alone."""
        self.charge = charge
        """What may be drawn."""
        self._expected = expected_examples
        self._source = source
        self._adaptive = adaptive
        self._rows = rows
        self._multiplier = charge.noise_multiplier
        if adaptive is not None:
            self._multiplier = adaptive.vector_multiplier(charge.noise_multiplier)
        self._steps = 0

    @contextmanager
    def gradient(self, trained: Trained) -> Iterator["PrivateGradient"]:
        """Make private gradients for what is trained, inside the block.

        Raises:
            BaseModelError: per-example gradients of what is trained are not to be had.
            RunError: at the end of the block, steps were taken but the adapter has not moved.
        """
        steps = self._steps
        before = [_some(tensor).clone() for tensor in trained.tensors]
        with per_sample_gradients(trained, rows=self._rows) as per_sample:
            yield PrivateGradient(self, trained, per_sample)
        if self._multiplier and self._steps > steps:
            after = [
                _some(parameter.detach())[: len(row)]
                for parameter, row in zip(trained.parameters, before, strict=True)
            ]
            require_moved(before, after, list(map(_some, trained.tensors)))

    def self_test(self) -> None:
        """Take a step without examples on a synthetic tensor and look at what it does.

        It is meant for the time before any data is read, and uses up no step.

        Raises:
            RunError: the step is not noise of the standard deviation that was charged.
        """
        if not self._multiplier:
            return
        trial = DpSgd(
            self.charge,
            expected_examples=self._expected,
            source=self._source,
            adaptive=self._adaptive,
        )
        trained = _Synthetic()
        with trial.gradient(trained) as gradient:
            gradient.finish()
            trained.step()
        noise = trained.tensors[0].double() * self._expected
        require_noise([noise], deviation=self._multiplier * self.charge.sensitivity)

    def privatised(self, total: ClippedSum) -> Tensor:
        """Return a step's gradient, ``(total.values.numel(),)`` float32 on the sum's device.

        Raises:
            BudgetError: all steps that were charged have been taken.
            RunError: the noise is not what it was calibrated to.
        """
        if self._steps >= self.charge.steps:
            raise BudgetError(
                f"All {self.charge.steps} private steps that were charged have been taken. "
                "Commit another charge to the ledger."
            )
        self._steps += 1
        deviation = self._multiplier * total.clip_norm
        noise = self._source.gaussian(total.values.numel()).mul_(deviation)
        noised = noise.to(total.values.device).add_(total.values)
        gradient = noised.div_(self._expected).float()
        if deviation:
            added = gradient.double().mul_(self._expected).sub_(total.values)
            require_noise(added.split(total.sizes), deviation=deviation)
        if self._adaptive is not None:
            self.clip_norm = self._adaptive.next_bound(
                total.clip_norm,
                unclipped=total.unclipped,
                examples=total.examples,
                expected=self._expected,
                noise=float(self._source.gaussian(1)),
            )
        return gradient


class PrivateGradient:
    """The gradients of one block's private steps; it satisfies the training layer's ``Gradient``.

    Of one micro-batch at a time the per-example gradients are in memory.
    """

    def __init__(self, mechanism: DpSgd, trained: Trained, per_sample: PerSampleGradients) -> None:
        self._mechanism = mechanism
        self._trained = trained
        self._per_sample = per_sample
        self._total = self._empty()

    def add(self, losses: Tensor) -> None:
        """Add the examples of a micro-batch to the step.

        Args:
            losses: ``(examples,)``, one for each row of the batch that the model was given, or for
                each ``rows`` of them.

        Raises:
            RunError: per-example gradients cannot be told apart, or the self-test failed.
        """
        losses.sum().backward()
        self._total.add(self._per_sample.take(len(losses)))

    def finish(self) -> bool:
        """Leave the private gradient of what was added, if anything, on the trained tensors.

        Returns:
            True: it is finite.

        Raises:
            BudgetError: all steps that were charged have been taken.
            RunError: the self-test failed.
        """
        gradient = self._mechanism.privatised(self._total)
        for tensor, part in zip(
            self._trained.tensors, gradient.split(self._total.sizes), strict=True
        ):
            tensor.grad = in_shape(part, tensor.shape)
        self._total = self._empty()
        return True

    def _empty(self) -> ClippedSum:
        tensors = self._trained.tensors
        return ClippedSum(
            [tensor.numel() for tensor in tensors],
            clip_norm=self._mechanism.clip_norm,
            device=tensors[0].device,
        )


class _Synthetic:
    """A square of zeros that is trained by plain gradient descent."""

    def __init__(self) -> None:
        self.model = nn.Linear(_TRIAL_SIDE, _TRIAL_SIDE, bias=False)
        self.model.weight = nn.Parameter(torch.zeros(_TRIAL_SIDE, _TRIAL_SIDE))
        self.parameters = [self.model.weight]
        self.tensors = [self.model.weight.detach()]
        self.pooled: tuple[int, ...] = ()

    def step(self) -> None:
        """Subtract the gradient."""
        (tensor,) = self.tensors
        if tensor.grad is not None:
            tensor.sub_(tensor.grad)


def _some(tensor: Tensor) -> Tensor:
    """Return a matrix's first row, or a vector itself."""
    return tensor[0] if tensor.ndim > 1 else tensor


def _require_fit(charge: Charge, expected_examples: float) -> None:
    mechanism = (charge.unit, charge.adjacency)
    if mechanism != ("example", "add-remove"):
        raise RunError(
            "DP-SGD is charged for examples that are added or removed, but the charge is for "
            f"{mechanism[0]} under {mechanism[1]}."
        )
    positive = 0 < charge.sensitivity < math.inf and 0 < expected_examples < math.inf
    if not (positive and 0 <= charge.noise_multiplier < math.inf):
        raise RunError(
            "DP-SGD needs a positive clip_norm and expected batch and a noise multiplier of at "
            f"least zero, but got {charge.sensitivity:g}, {expected_examples:g} and "
            f"{charge.noise_multiplier:g}."
        )
