"""Batches hold what they should, pad little, and are the same for the same step."""

import random

import pytest
import torch

from fedlora.data.batches import collate, mixture, rows_of_step
from fedlora.data.tokens import TokenizedExample


def test_examples_are_padded_on_the_right() -> None:
    """Padding has no attention and no label; unsupervised tokens have no label."""
    examples = [
        TokenizedExample((5, 6, 7), (False, True, True)),
        TokenizedExample((8, 9), (True, False)),
    ]
    batch = collate(examples, pad_token_id=1)
    expected = {
        "input_ids": [[5, 6, 7], [8, 9, 1]],
        "attention_mask": [[1, 1, 1], [1, 1, 0]],
        "labels": [[-100, 6, 7], [8, -100, -100]],
    }
    for name, values in expected.items():
        tensor = getattr(batch, name)
        assert tensor.dtype == torch.int64
        assert tensor.tolist() == values


def test_rows_of_like_length_share_batches() -> None:
    """On lengths as skewed as text's, at least two thirds of random order's padding are saved."""
    generator = random.Random(0)
    lengths = [int(generator.lognormvariate(4, 0.7)) + 1 for _ in range(1000)]

    def padding(batches: list[list[int]]) -> int:
        return sum(max(lengths[i] for i in batch) - lengths[j] for batch in batches for j in batch)

    steps = range(125)
    grouped = [rows_of_step(lengths, batch_size=8, seed="s", step=step) for step in steps]
    order = generator.sample(range(1000), 1000)
    shuffled = [order[start : start + 8] for start in range(0, 1000, 8)]
    assert padding(grouped) < padding(shuffled) / 3


def test_batches_of_an_epoch_come_in_no_order_of_length() -> None:
    """Grouping must not turn an epoch into a walk from short rows to long ones."""
    lengths = list(range(1, 129))
    firsts = [rows_of_step(lengths, batch_size=8, seed="s", step=step)[0] for step in range(16)]
    assert firsts != sorted(firsts)
    assert firsts != sorted(firsts, reverse=True)


@pytest.mark.parametrize(("other", "step"), [("s", 16), ("t", 0)])
def test_epochs_and_seeds_shuffle_differently(other: str, step: int) -> None:
    """The second epoch, or another seed, makes other batches of the same rows."""
    lengths = [1] * 128
    one = [rows_of_step(lengths, batch_size=8, seed="s", step=i) for i in range(16)]
    two = [rows_of_step(lengths, batch_size=8, seed=other, step=step + i) for i in range(16)]
    assert sorted(map(sorted, one)) != sorted(map(sorted, two))


def test_the_order_is_the_same_in_every_process_and_version() -> None:
    """Pinned: a run that is resumed elsewhere goes on with the batches it would have had."""
    rows = [rows_of_step(range(1, 11), batch_size=3, seed="0/gui", step=i) for i in (0, 7)]
    assert rows == [[4, 5, 6], [0, 1, 3]]


def test_sources_without_shares_count_by_their_rows() -> None:
    """All rows weigh the same then; with shares the mean weight is 1 all the same."""
    sources = ["a", "b", "b", "b"]
    assert mixture(sources, {"a": None, "b": None}) == [1, 1, 1, 1]
    assert mixture(sources, {"a": 3, "b": 1}) == pytest.approx([3, 1 / 3, 1 / 3, 1 / 3])


def test_a_mixture_is_the_same_in_every_process_and_keeps_to_lengths() -> None:
    """Pinned, and resumable at any step; rows of a batch are of like length there, too."""
    few = mixture([0] * 6 + [1] * 4, {0: 1, 1: 3})
    rows = [
        rows_of_step(range(1, 11), batch_size=3, seed="0/gui", step=i, weights=few) for i in (0, 7)
    ]
    assert rows == [[7, 8, 9], [6, 7, 8]]
    generator = random.Random(0)
    lengths = [int(generator.lognormvariate(4, 0.7)) + 1 for _ in range(1000)]
    weights = mixture([0] * 900 + [1] * 100, {0: 1, 1: 1})

    def batches(weights: list[float] | None) -> list[list[int]]:
        return [
            rows_of_step(lengths, batch_size=8, seed="s", step=step, weights=weights)
            for step in range(125)
        ]

    def padding(found: list[list[int]]) -> int:
        return sum(max(lengths[i] for i in rows) - lengths[j] for rows in found for j in rows)

    mixed = batches(weights)
    assert sum(row >= 900 for rows in mixed for row in rows) == 500
    assert padding(mixed) < 1.5 * padding(batches(None))
    again = rows_of_step(lengths, batch_size=8, seed="s", step=77, weights=weights)
    assert again == mixed[77]


def test_copies_of_a_row_are_kept_apart() -> None:
    """A row that a mixture visits often shares few batches with itself."""
    lengths = list(range(1, 513))
    weights = mixture([0] * 384 + [1] * 128, {0: 1, 1: 3})
    steps = [
        rows_of_step(lengths, batch_size=8, seed="s", step=i, weights=weights) for i in range(64)
    ]
    assert sum(len(set(rows)) < 8 for rows in steps) <= 4
