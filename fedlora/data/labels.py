"""Texts with labels as tokens with classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fedlora.data.batches import padded
from fedlora.data.examples import Labelled
from fedlora.data.tokens import TokenizedExample, Tokenizer
from fedlora.errors import RowError


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """Tokens of one text (at least one), and its class."""

    input_ids: tuple[int, ...]
    label: int
    """Place of its label among those of the recipe."""
    excess: int = field(default=0, compare=False)
    """Tokens that were cut off because it was too long."""

    @property
    def length(self) -> int:
        """What its place among rows of like length goes by: its tokens."""
        return len(self.input_ids)

    @property
    def ids(self) -> tuple[tuple[int, ...], int]:
        """What tells it from other rows."""
        return self.input_ids, self.label

    @property
    def sequences(self) -> tuple[TokenizedExample]:
        """The sequences that it is read as: the text, of which no token is learned."""
        return (TokenizedExample(self.input_ids, (False,) * self.length),)


@dataclass(frozen=True, slots=True, eq=False)
class LabelledBatch:
    """Texts side by side, padded on the right."""

    input_ids: Tensor
    """``(batch, length)`` int64."""
    attention_mask: Tensor
    """``(batch, length)`` int64, 0 where padded."""
    labels: Tensor
    """``(batch,)`` int64: the class of each text."""

    @property
    def tokens(self) -> int:
        """What is supervised: each text once."""
        return len(self.labels)


def tokenize_text(
    row: Labelled, tokenizer: Tokenizer, *, labels: Sequence[str], sequence_len: int
) -> TokenizedText:
    """Return a text as the tokenizer writes it, with the tokens that begin and end a text.

    One that is too long loses its end; the tokens that end a text stay behind it.

    Args:
        row: the text and its label.
        tokenizer: the base model's.
        labels: of the recipe, in the order of the classes.
        sequence_len: longest result in tokens.

    Raises:
        RowError: the label is none of ``labels``, or the text has no token.
    """
    if row.label not in labels:
        raise RowError(
            row.where,
            f"the label is none of the recipe's labels: {', '.join(labels)}. Correct the row, or "
            "the recipe for all sites.",
        )
    encoded: Mapping[str, Any] = tokenizer(
        row.text,
        return_special_tokens_mask=True,
        verbose=False,  # it would warn of lengths that are cut below
    )
    ids, special = list(encoded["input_ids"]), list(encoded["special_tokens_mask"])
    if not ids:
        raise RowError(row.where, "the text has no token. Write one, or remove the row.")
    excess = max(0, len(ids) - sequence_len)
    if excess:
        end = len(special) - next((n for n, mark in enumerate(reversed(special)) if not mark), 0)
        ids[end - excess : end] = []
    return TokenizedText(input_ids=tuple(ids), label=labels.index(row.label), excess=excess)


def collate_texts(
    rows: Sequence[TokenizedText], *, pad_token_id: int, length: int | None = None
) -> LabelledBatch:
    """Pad texts (at least one) on the right to the longest of them, or to ``length``."""
    input_ids, attention_mask = padded(
        [row.input_ids for row in rows], pad_token_id=pad_token_id, length=length
    )
    labels = torch.tensor([row.label for row in rows])
    return LabelledBatch(input_ids=input_ids, attention_mask=attention_mask, labels=labels)
