"""Where private randomness comes from."""

from typing import Protocol

from torch import Tensor


class NoiseSource(Protocol):
    """Draws the noise and the samples of private mechanisms.

    Guarantees:
        Draws are independent of each other, and of everything that an adversary knows.
    """

    def gaussian(self, count: int) -> Tensor:
        """Return ``(count,)`` float64 on the CPU from the standard normal distribution.

        The tensor is the caller's to overwrite.
        """

    def poisson_sample(self, count: int, rate: float) -> list[int]:
        """Return those of ``range(count)`` that a Poisson sample has, in ascending order.

        Each is in it with probability ``rate``, independently; the sample may be empty.
        """


class RoundSource(NoiseSource, Protocol):
    """All that a private round draws from."""

    def secret(self) -> str:
        """Return a seed of 256 bits for other generators, such as that of dropout."""
