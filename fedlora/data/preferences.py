"""Pairs of answers as tokens: the same prompt, and each of two answers to it."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from fedlora.data.batches import Batch, collate
from fedlora.data.examples import Example, Preference, Turn
from fedlora.data.tokens import TokenizedExample, Tokenizer, tokenize


@dataclass(frozen=True, slots=True)
class TokenizedPair:
    """Tokens of a prompt with the answer that is preferred, and with the one that is not.

    Guarantees:
        Supervised are the tokens of the two answers, each with the token that ends its turn.
    """

    chosen: TokenizedExample
    rejected: TokenizedExample
    excess: int = field(default=0, compare=False)
    """Tokens that the longer side lost, because it was too long."""

    @property
    def sequences(self) -> tuple[TokenizedExample, TokenizedExample]:
        """Both sides, the preferred first."""
        return self.chosen, self.rejected

    @property
    def length(self) -> int:
        """What its place among rows of like length goes by: the longer side's tokens."""
        return max(self.chosen.length, self.rejected.length)

    @property
    def ids(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What tells it from other rows."""
        return self.chosen.ids, self.rejected.ids


def tokenize_pair(row: Preference, tokenizer: Tokenizer, *, sequence_len: int) -> TokenizedPair:
    """Render a prompt with each of its answers, as ``tokenize`` does, and mark the answers.

    A pair whose longer side is too long loses the beginning of its prompt, the same tokens on both
    sides, except for the token that begins a sequence. The last token before the answers stays.
    What is too long even so loses its end.

    Args:
        row: the pair.
        tokenizer: the base model's.
        sequence_len: longest side in tokens, at least 3.

    Raises:
        DataError: as for ``tokenize``, of either side.
    """
    sides = [_answered(row, answer, tokenizer) for answer in (row.chosen, row.rejected)]
    ids = sides[0].input_ids
    head = 1 if ids[0] == tokenizer.bos_token_id else 0
    prompt = min(side.supervised.index(True) for side in sides)
    excess = max(0, *(side.length - sequence_len for side in sides))
    end = head + max(0, min(excess, prompt - max(head, 1)))
    chosen, rejected = (_without(side, slice(head, end), longest=sequence_len) for side in sides)
    return TokenizedPair(chosen=chosen, rejected=rejected, excess=excess)


def collate_pairs(
    pairs: Sequence[TokenizedPair], *, pad_token_id: int, length: int | None = None
) -> Batch:
    """Put pairs (at least one) side by side: rows ``2i`` and ``2i + 1`` are those of pair ``i``.

    All are padded on the right to the longest row, or to ``length``.
    """
    rows = [side for pair in pairs for side in pair.sequences]
    return collate(rows, pad_token_id=pad_token_id, length=length)


def _answered(row: Preference, answer: Turn, tokenizer: Tokenizer) -> TokenizedExample:
    """Return a prompt with an answer, uncut; of its assistant turns the last alone is marked."""
    whole = Example((*row.prompt, answer), where=row.where)
    tokens = tokenize(whole, tokenizer, sequence_len=sys.maxsize, train_on_inputs=False)
    start = tokens.length  # what follows the last supervised token is not there any more
    while start and tokens.supervised[start - 1]:
        start -= 1
    marks = (False,) * start + tokens.supervised[start:]
    return TokenizedExample(input_ids=tokens.input_ids, supervised=marks)


def _without(tokens: TokenizedExample, cut: slice, *, longest: int) -> TokenizedExample:
    ids, marks = tokens.input_ids, tokens.supervised
    return TokenizedExample(
        input_ids=(*ids[: cut.start], *ids[cut.stop :])[:longest],
        supervised=(*marks[: cut.start], *marks[cut.stop :])[:longest],
    )
