"""Clipping at a quantile of the norms, which is followed privately."""

import math
from dataclasses import dataclass

from fedlora.errors import RunError


@dataclass(frozen=True, kw_only=True)
class AdaptiveClip:
    """A bound that moves towards a quantile of the examples' gradient norms.

    Guarantees:
        A step that adds noise with the multiplier ``vector_multiplier(z)`` to the clipped sum, and
        of ``count_deviation`` to the centred count, spends what a step with the multiplier z does
        that has a fixed bound, whatever the bounds were.

    References:
        Andrew et al. 2021, arXiv:1905.03871, algorithm 1 and theorem 1.
    """

    quantile: float
    """Share of examples that are to stay unclipped, in (0, 1); gamma in the
    paper."""
    learning_rate: float
    """How fast the bound moves: by a factor of at most about ``exp(±learning_rate)`` a step; 0.2
    in the paper."""
    count_deviation: float
    """Standard deviation of the noise on the centred count; sigma_b in the paper, which takes a
    twentieth of the expected number of examples."""

    def __post_init__(self) -> None:
        positive = self.learning_rate > 0 and self.count_deviation > 0
        if not (0 < self.quantile < 1 and positive):
            raise RunError(
                "Adaptive clipping needs a quantile between 0 and 1 and a positive learning rate "
                f"and count deviation, but got {self.quantile:g}, {self.learning_rate:g} and "
                f"{self.count_deviation:g}."
            )

    def vector_multiplier(self, noise_multiplier: float) -> float:
        """Return the noise multiplier of the clipped sum, y, for that of the whole step, z.

        The centred count c has a sensitivity of 1/2, so 1/z² = 1/y² + 1/(2 count_deviation)².

        Raises:
            RunError: the count alone spends more than z allows.
        """
        if not noise_multiplier < 2 * self.count_deviation:
            raise RunError(
                f"The noise on the count of unclipped examples, {self.count_deviation:g}, must be "
                f"above half of the noise multiplier, {noise_multiplier:g}. Choose a larger "
                "expected batch or a fixed clip_norm."
            )
        spent = noise_multiplier / (2 * self.count_deviation)
        return noise_multiplier / math.sqrt(1 - spent**2)

    def next_bound(
        self, bound: float, *, unclipped: int, examples: int, expected: float, noise: float
    ) -> float:
        """Return the bound of the next step.

        Args:
            bound: of this step.
            unclipped: examples whose norm was at most ``bound``.
            examples: all examples of the step.
            expected: the fixed, expected number of examples.
            noise: one draw from the standard normal distribution.
        """
        centred = unclipped - examples / 2  # an example adds 1/2 or -1/2
        share = (centred + self.count_deviation * noise) / expected + 1 / 2
        return bound * math.exp(-self.learning_rate * (share - self.quantile))
