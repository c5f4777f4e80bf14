"""What every method of aggregation offers."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from fedlora.adapter import AdapterSpec, AdapterState, AdapterUpdate, TensorSpec


class Aggregator(Protocol):
    """Makes one update of a round's updates, one client at a time.

    Guarantees of each method:
        Memory does not grow with the number of clients. The result depends on the updates, their
        weights and their order alone.
    """

    def plan(self, number: int, spec: AdapterSpec) -> tuple[TensorSpec, ...]:
        """Return the tensors that clients train and send in round ``number`` (from 1)."""

    def begin(self, global_adapter: AdapterState) -> None:
        """Start a round from the adapter that the clients received."""

    def add(self, update: AdapterUpdate, weight: float) -> None:
        """Take in one client's update.

        Raises:
            AdapterError: the update has another specification, the weight is not positive and
                finite, or the round was not begun.
        """

    def finish(self) -> AdapterUpdate:
        """Return the round's update and end the round.

        Raises:
            AdapterError: no update was added.
        """

    def state(self) -> Mapping[str, Tensor]:
        """Return what a checkpoint between two rounds must keep."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a checkpoint's state."""
