"""What a private mechanism spends, as facts that any accountant can work from."""

from dataclasses import dataclass
from typing import Literal, Self

Unit = Literal["example", "client"]
Adjacency = Literal["add-remove", "replace-one", "zero-out"]
Mechanism = Literal["gaussian", "skellam"]
Sampler = Literal["poisson", "all"]


@dataclass(frozen=True, kw_only=True)
class Charge:
    """Steps of one mechanism on a random sample: what a ledger's row says.

    Each step releases a sum over the sampled units, each of L2 norm at most ``clip_norm``, plus
    noise of standard deviation ``noise_multiplier · sensitivity``: normal or, on vectors of whole
    numbers, symmetric Skellam noise.
    """

    unit: Unit
    """What is added, removed or replaced: one training example, or all of one client's data."""
    adjacency: Adjacency
    sensitivity: float
    """Most that one unit changes a step's sum by, in L2: ``clip_norm`` under add-remove, and under
    zero-out, where the unit stays in place and adds nothing; twice that under replace-one."""
    noise_multiplier: float
    """z: standard deviation of the noise over the sensitivity."""
    sampling_rate: float
    """q: probability with which each unit takes part in a step, independently; 1 when all do."""
    steps: int
    sampler: Sampler
    """``poisson``: each unit by a draw of its own. ``all``: no amplification is claimed."""
    granularity: int | None = None
    """Whole steps of which the sensitivity is made, where the noise is Skellam's; none where it is
    normal."""

    @property
    def mechanism(self) -> Mechanism:
        """The noise's distribution."""
        return "gaussian" if self.granularity is None else "skellam"

    @classmethod
    def of_steps(
        cls, steps: int, *, sensitivity: float, noise_multiplier: float, sampling_rate: float
    ) -> Self:
        """Return the charge of private training steps, each on a Poisson sample of examples."""
        return cls(
            unit="example",
            adjacency="add-remove",
            sensitivity=sensitivity,
            noise_multiplier=noise_multiplier,
            sampling_rate=sampling_rate,
            steps=steps,
            sampler="poisson",
        )
