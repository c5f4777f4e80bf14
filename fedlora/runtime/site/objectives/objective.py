"""What a site asks of an objective."""

from collections.abc import Hashable, Sequence
from typing import Protocol, TypeVar

from torch import Tensor

from fedlora.data.tokens import Tokenizer
from fedlora.training.base_model import BaseModel


class Tokenized(Protocol):
    """A row as tokens."""

    @property
    def length(self) -> int:
        """What its place among rows of like length goes by."""

    @property
    def ids(self) -> Hashable:
        """What tells it from other rows; JSON can hold it, too."""


RowT_contra = TypeVar("RowT_contra", contravariant=True)
TokenizedT = TypeVar("TokenizedT", bound=Tokenized)
BatchT = TypeVar("BatchT")


class Objective(Protocol[RowT_contra, TokenizedT, BatchT]):
    """Turns rows into tokens, tokens into batches, and batches into one loss for each row."""

    def tokenize(self, row: RowT_contra, tokenizer: Tokenizer) -> TokenizedT:
        """Return a row as tokens.

        Raises:
            DataError: there is nothing to learn from it; the message names its place.
        """

    def collate(
        self, rows: Sequence[TokenizedT], *, pad_token_id: int, length: int | None = None
    ) -> BatchT:
        """Return rows (at least one) side by side, padded to the longest or to ``length``."""

    def losses(self, base: BaseModel, batch: BatchT) -> Tensor:
        """Return the differentiable float32 loss of each row, ``(rows,)``."""

    def measured(self, base: BaseModel, batch: BatchT) -> tuple[Tensor, Tensor]:
        """Return each row's summed loss and what it is over, such as tokens; for an evaluation.

        Returns:
            ``(rows,)`` float32 in nats, and ``(rows,)`` int64.
        """
