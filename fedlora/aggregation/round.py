"""What every method keeps count of while a round is open."""

import math
from dataclasses import dataclass
from typing import TypeVar

from fedlora.adapter import AdapterSpec, AdapterState, AdapterUpdate
from fedlora.errors import AdapterError

_T = TypeVar("_T")


@dataclass(kw_only=True, eq=False)
class Round:
    """A round from ``begin`` to ``finish``.

    Means are kept as running means, so that no sum grows with the weights: a new update of weight
    w moves the mean by w / W, where W is the weight so far, its own included.
    """

    global_adapter: AdapterState
    weight: float = 0.0
    num_examples: int = 0

    def part(self, weight: float, *, share: float) -> float:
        """Return the part that an update will have of the weight so far.

        Raises:
            AdapterError: the weight is not positive and finite, or the share not from 0 to 1.
        """
        if not (weight > 0 and math.isfinite(weight)):
            raise AdapterError(f"A weight must be positive and finite, but it is {weight}.")
        if not 0 <= share <= 1:
            raise AdapterError(f"A share must be from 0 to 1, but it is {share}.")
        return weight / (self.weight + weight)

    def count(self, update: AdapterUpdate, weight: float) -> None:
        """Count an update that was taken in."""
        self.weight += weight
        self.num_examples += update.num_examples

    def require_factors(self, spec: AdapterSpec) -> None:
        """Do nothing if ``spec`` is of some kinds of the global adapter's tensors, at its rank.

        Raises:
            AdapterError: it is not.
        """
        kinds = {tensor.factor for tensor in spec.tensors}
        self.global_adapter.spec.part(kinds).require_same(spec)


def opened(current: Round | None) -> Round:
    """Return the open round.

    Raises:
        AdapterError: there is none.
    """
    if current is None:
        raise AdapterError("The round was not begun: call begin() before add() and finish().")
    return current


def added(result: _T | None) -> _T:
    """Return what was made of a round's updates so far.

    Raises:
        AdapterError: there is nothing, because no update was added.
    """
    if result is None:
        raise AdapterError("There is no update to aggregate: add at least one.")
    return result
