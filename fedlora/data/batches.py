"""Batches of examples of like length, the same for every run that asks for the same step."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import cycle, islice

import torch
from torch import Tensor

from fedlora.data.tokens import TokenizedExample

IGNORED = -100
"""Label of a position that is not learned."""

_GROUP = 16
"""Batches whose rows are sorted together. More pad less, but shuffle less."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Examples side by side, padded on the right."""

    input_ids: Tensor
    """``(batch, length)`` int64."""
    attention_mask: Tensor
    """``(batch, length)`` int64, 0 where padded."""
    labels: Tensor
    """``(batch, length)`` int64: the token at the same position, or -100 where not supervised."""

    @property
    def tokens(self) -> int:
        """Supervised tokens."""
        return int((self.labels[:, 1:] != IGNORED).sum())


def collate(
    examples: Sequence[TokenizedExample], *, pad_token_id: int, length: int | None = None
) -> Batch:
    """Pad examples (at least one) on the right to the longest of them, or to ``length``."""
    longest = max(len(example.input_ids) for example in examples)
    shape = (len(examples), length or longest)
    input_ids = torch.full(shape, pad_token_id)
    attention_mask = torch.zeros(shape, dtype=torch.int64)
    labels = torch.full(shape, IGNORED)
    for row, example in enumerate(examples):
        tokens, length = torch.tensor(example.input_ids), len(example.input_ids)
        input_ids[row, :length] = tokens
        attention_mask[row, :length] = 1
        labels[row, :length] = tokens.where(torch.tensor(example.supervised), IGNORED)
    return Batch(input_ids=input_ids, attention_mask=attention_mask, labels=labels)


def rows_of_step(lengths: Sequence[int], *, batch_size: int, seed: str, step: int) -> list[int]:
    """Return which rows make batch ``step`` (from 0) of an endless stream of epochs.

    Guarantees:
        The answer depends on the arguments alone, so that a resumed run sees the same batches.
        A batch has exactly ``batch_size`` rows. An epoch is a new shuffle that visits no row
        twice; the ``len(lengths) % batch_size`` rows at its end are left out of it. With fewer
        rows than ``batch_size``, each batch has all of them and repeats some.

    Args:
        lengths: length of each row in tokens; batches are made of rows of like length.
        batch_size: rows in a batch.
        seed: names the stream.
        step: the batch, from 0.
    """
    epoch, index = divmod(step, max(1, len(lengths) // batch_size))
    return list(_epoch(tuple(lengths), batch_size=batch_size, seed=f"{seed}/{epoch}")[index])


@lru_cache(maxsize=64)  # sites of a simulation take turns
def _epoch(lengths: tuple[int, ...], *, batch_size: int, seed: str) -> list[list[int]]:
    generator = random.Random(seed)
    order = generator.sample(range(len(lengths)), len(lengths))
    count = max(1, len(order) // batch_size)
    order = list(islice(cycle(order), count * batch_size))
    batches = []
    for start in range(0, len(order), _GROUP * batch_size):
        group = sorted(order[start : start + _GROUP * batch_size], key=lengths.__getitem__)
        batches += [group[i : i + batch_size] for i in range(0, len(group), batch_size)]
    generator.shuffle(batches)
    return batches
