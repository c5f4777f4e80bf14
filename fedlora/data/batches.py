"""Batches of examples of like length, the same for every run that asks for the same step."""

import random
from bisect import bisect_right
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, cycle, islice

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
    input_ids, attention_mask = padded(
        [example.input_ids for example in examples], pad_token_id=pad_token_id, length=length
    )
    labels = torch.full_like(input_ids, IGNORED)
    for row, example in enumerate(examples):
        own = slice(example.length)
        labels[row, own] = input_ids[row, own].where(torch.tensor(example.supervised), IGNORED)
    return Batch(input_ids=input_ids, attention_mask=attention_mask, labels=labels)


def padded(
    rows: Sequence[Sequence[int]], *, pad_token_id: int, length: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return rows of tokens (at least one) side by side, and the mask of what is no padding.

    Both are ``(rows, length)`` int64, padded on the right to the longest row or to ``length``.
    """
    shape = (len(rows), length or max(map(len, rows)))
    input_ids = torch.full(shape, pad_token_id)
    attention_mask = torch.zeros(shape, dtype=torch.int64)
    for place, row in enumerate(rows):
        input_ids[place, : len(row)] = torch.tensor(row)
        attention_mask[place, : len(row)] = 1
    return input_ids, attention_mask


def rows_of_step(
    lengths: Sequence[int],
    *,
    batch_size: int,
    seed: str,
    step: int,
    weights: Sequence[float] | None = None,
) -> list[int]:
    """Return which rows make batch ``step`` (from 0) of an endless stream of epochs.

    Guarantees:
        The answer depends on the arguments alone, so that a resumed run sees the same batches.
        A batch has exactly ``batch_size`` rows. An epoch has as many rows as there are, but for
        the ``len(lengths) % batch_size`` at its end, which are left out of it.

        Without weights an epoch is a new shuffle that visits no row twice; with fewer rows than
        ``batch_size``, each batch has all of them and repeats some. With weights it visits each
        row, and all rows of a weight together, as often as their share of the weights says, rounded
        up or down by chance.

    Args:
        lengths: length of each row in tokens; batches are made of rows of like length.
        batch_size: rows in a batch.
        seed: names the stream.
        step: the batch, from 0.
        weights: how often each row is visited, relative to the others.
    """
    epoch, index = divmod(step, max(1, len(lengths) // batch_size))
    batches = _epoch(
        tuple(lengths),
        weights=tuple(weights) if weights else None,
        batch_size=batch_size,
        seed=f"{seed}/{epoch}",
    )
    return list(batches[index])


def mixture(sources: Sequence[Hashable], shares: Mapping[Hashable, float | None]) -> list[float]:
    """Return a weight for each row, so that each source has its share of what is visited.

    Args:
        sources: where each row comes from.
        shares: of each source, relative to the others; with none, a source counts by its rows.

    Returns:
        Weights whose mean is 1.
    """
    counts = Counter(sources)
    total = sum(shares[source] or counts[source] for source in counts)
    of_row = {
        source: (shares[source] or count) * len(sources) / (count * total)
        for source, count in counts.items()
    }
    return [of_row[source] for source in sources]


@lru_cache(maxsize=64)  # sites of a simulation take turns
def _epoch(
    lengths: tuple[int, ...], *, weights: tuple[float, ...] | None, batch_size: int, seed: str
) -> list[list[int]]:
    generator = random.Random(seed)
    order = generator.sample(range(len(lengths)), len(lengths))
    if weights:
        order = _drawn(order, weights, generator)
    count = max(1, len(order) // batch_size)
    order = list(islice(cycle(order), count * batch_size))
    batches = []
    for start in range(0, len(order), _GROUP * batch_size):
        group = _by_length(order[start : start + _GROUP * batch_size], lengths)
        batches += [group[i : i + batch_size] for i in range(0, len(group), batch_size)]
    generator.shuffle(batches)
    return batches


def _drawn(order: Sequence[int], weights: Sequence[float], generator: random.Random) -> list[int]:
    """Return as many rows as there are in ``order``, each as often as its weight says.

    This is systematic sampling: equal steps along the weights, laid end to end, from a start by
    chance. Rows of one weight lie together, so that their number, too, is off by less than one.
    The visits of a row are spread evenly over the epoch.
    """
    order = sorted(order, key=weights.__getitem__)
    ends = list(accumulate(weights[row] for row in order))
    start, step, last = generator.random(), ends[-1] / len(order), len(order) - 1
    places = (bisect_right(ends, (start + number) * step) for number in range(len(order)))
    visits = Counter(order[min(place, last)] for place in places)
    spread = [
        ((visit + begin) / count, row)
        for row, count in visits.items()
        for begin in [generator.random()]
        for visit in range(count)
    ]
    return [row for _, row in sorted(spread)]


def _by_length(rows: Sequence[int], lengths: Sequence[int]) -> list[int]:
    """Return rows in order of length; a row that is there again comes after all others' first."""
    seen: Counter[int] = Counter()
    turns = []
    for row in rows:
        turns.append((seen[row], lengths[row], row))
        seen[row] += 1
    return [row for _, _, row in sorted(turns, key=lambda turn: turn[:2])]
