"""What a site asks of an objective."""

from collections.abc import Hashable, Sequence
from typing import Protocol, TypeVar

from torch import Tensor

from fedlora.adapter import AdapterState
from fedlora.data.tokens import TokenizedExample, Tokenizer
from fedlora.training.base_model import BaseModel
from fedlora.training.evaluation import Evaluation


class Tokenized(Protocol):
    """A row as tokens."""

    @property
    def length(self) -> int:
        """What its place among rows of like length goes by."""

    @property
    def excess(self) -> int:
        """Tokens that were cut off because it was too long."""

    @property
    def sequences(self) -> Sequence[TokenizedExample]:
        """The sequences that it is read as, each with what of it is learned, for people to see."""

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

    def losses(self, base: BaseModel, batch: BatchT, received: AdapterState | None, /) -> Tensor:
        """Return the differentiable float32 loss of each row, ``(rows,)``.

        Args:
            base: with the adapter that is trained.
            batch: as ``collate`` made it.
            received: the adapter that the training began with; where none did, the base alone.
        """

    def measure(self, base: BaseModel, batch: BatchT) -> Evaluation:
        """Return what held-out rows are judged by, as sums; gradients are off.

        Beside the loss there may be shares, of names that may leave a site (``gate.metrics``).
        """
