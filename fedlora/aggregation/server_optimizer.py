"""How the aggregator steps from one global adapter to the next."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from fedlora.adapter import AdapterState, AdapterUpdate


class ServerOptimizer(Protocol):
    """Steps the global adapter by a round's update (Reddi et al. 2020, arXiv:2003.00295)."""

    def step(self, global_adapter: AdapterState, update: AdapterUpdate) -> AdapterState:
        """Return the next global adapter.

        Raises:
            AdapterError: the two have different specifications.
        """

    def state(self) -> Mapping[str, Tensor]:
        """Return what a checkpoint between two rounds must keep."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a checkpoint's state."""


class PlainOptimizer:
    """Adds the update: server learning rate one, no momentum."""

    def step(self, global_adapter: AdapterState, update: AdapterUpdate) -> AdapterState:
        return global_adapter.plus(update)

    def state(self) -> Mapping[str, Tensor]:
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Do nothing: it remembers nothing between rounds."""
