"""How well a score tells members from others: what an attack gets, not what attacks could get."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

FALSE_POSITIVES = 0.01
"""Share of the others that an attacker may take for members (Carlini et al. 2022,
arXiv:2112.03570)."""
_RESAMPLES = 1000

Scores = NDArray[np.float64]
"""Higher means: rather a member."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A number with the interval that holds it in 95 of 100 bootstrap resamples."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Membership:
    """What an attack on members reached."""

    members: int
    others: int
    auc: Interval
    """Probability that a member has the higher score of a member and another; 1/2 for none."""
    tpr: Interval
    """Share of the members above ``FALSE_POSITIVES`` of the others; as much for none."""
    curve: tuple[tuple[float, float], ...]
    """The ROC curve: false and true positives at some thresholds."""

    @classmethod
    def of(cls, members: Scores, others: Scores) -> Self:
        """Measure scores, ``(members,)`` and ``(others,)``, at least one of each."""
        return cls(
            members=len(members),
            others=len(others),
            auc=_bootstrap(auc, members, others),
            tpr=_bootstrap(true_positives, members, others),
            curve=tuple(
                (float(share), true_positives(members, others, share))
                for share in np.unique(np.concatenate(([0], np.geomspace(1e-3, 1, 61))))
            ),
        )


def auc(members: Scores, others: Scores) -> float:
    """Return the area under the ROC curve; a tie counts as half."""
    others = np.sort(others)
    below = np.searchsorted(others, members, side="left")
    not_above = np.searchsorted(others, members, side="right")
    return float((below + not_above).mean() / (2 * len(others)))


def true_positives(members: Scores, others: Scores, share: float = FALSE_POSITIVES) -> float:
    """Return the share of members above a threshold that at most ``share`` of the others pass."""
    allowed = int(share * len(others) + 1e-9)
    if allowed >= len(others):
        return 1.0
    threshold = np.sort(others)[len(others) - 1 - allowed]
    return float((members > threshold).mean())


def _bootstrap(
    measure: Callable[[Scores, Scores], float], members: Scores, others: Scores
) -> Interval:
    draw = np.random.default_rng(0)
    values = [
        measure(draw.choice(members, len(members)), draw.choice(others, len(others)))
        for _ in range(_RESAMPLES)
    ]
    low, high = np.quantile(values, (0.025, 0.975))
    return Interval(value=measure(members, others), low=float(low), high=float(high))
