"""What the local loop asks of a batch."""

from typing import Protocol

from torch import Tensor

IGNORED = -100
"""Label of a token that is not supervised."""


class Batch(Protocol):
    """Tokenised examples, padded on the right to a common length."""

    @property
    def input_ids(self) -> Tensor:
        """``(batch, length)`` int64."""

    @property
    def labels(self) -> Tensor:
        """``(batch, length)`` int64: the token at that place, or ``IGNORED``."""

    @property
    def tokens(self) -> int:
        """Supervised tokens."""


def supervised(batch: Batch) -> Tensor:
    """Return ``(batch, length - 1)`` bool: the places whose next token is supervised."""
    return batch.labels[:, 1:] != IGNORED
