"""What every method of aggregation offers."""

from typing import Protocol

from fedlora.adapter import AdapterState, AdapterUpdate


class Aggregator(Protocol):
    """Makes one update of a round's updates, one client at a time.

    Which factors clients train and send, and what may be combined with the method, stand in
    ``fedlora.methods.METHODS``.

    Guarantees of each method:
        Memory does not grow with the number of clients. The result depends on the updates, their
        weights and shares, and their order alone.
    """

    def begin(self, global_adapter: AdapterState) -> None:
        """Start a round from the adapter that the clients received."""

    def add(self, update: AdapterUpdate, weight: float, *, share: float = 1.0) -> None:
        """Take in one client's update. Its values may be overwritten.

        Args:
            update: of the part of the global adapter that the client trained and sent.
            weight: what the update counts by in the weighted mean.
            share: how much of the change is taken in; the rest counts as no change.

        Raises:
            AdapterError: the update is of another adapter, the weight is not positive and finite,
                the share is not from 0 to 1, or the round was not begun.
        """

    def finish(self) -> AdapterUpdate:
        """Return the round's update and end the round.

        Its rank may be above the global adapter's: the server optimiser cuts it.

        Raises:
            AdapterError: no update was added.
        """
