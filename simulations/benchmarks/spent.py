"""What clients and an aggregator spend on an attempt at a secure sum."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.message import Message

_Said = TypeVar("_Said", bound=Message)


@dataclass
class Spent:
    """Seconds of this process, and bytes."""

    client: float = 0
    """Seconds of all clients."""
    aggregator: float = 0
    """Seconds of the aggregator."""
    sent: int = 0
    """Bytes that all clients have sent."""
    received: int = 0
    """Bytes that they were sent."""

    @contextmanager
    def at_client(self) -> Iterator[None]:
        """Count the block's seconds as a client's."""
        started = time.process_time()
        yield
        self.client += time.process_time() - started

    @contextmanager
    def at_aggregator(self) -> Iterator[None]:
        """Count the block's seconds as the aggregator's."""
        started = time.process_time()
        yield
        self.aggregator += time.process_time() - started

    def out(self, said: _Said) -> _Said:
        """Count what a client sends, and return it."""
        self.sent += said.ByteSize()
        return said

    def back(self, told: _Said) -> _Said:
        """Count what a client is sent, and return it."""
        self.received += told.ByteSize()
        return told
