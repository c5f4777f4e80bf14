"""What one example can change of a private step."""

import math
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedlora.privacy.dp_sgd.clipping import ClippedSum
from fedlora.training.base_model import BaseModel
from fedlora.training.objectives import sft_loss
from tests.tiny_models import Tokens, dpo_of, private_sum, random_tokens, tiny_base

LENGTHS = st.lists(st.integers(3, 12), min_size=1, max_size=6)
PAIRS = st.lists(st.tuples(st.integers(3, 12), st.integers(3, 12)), min_size=1, max_size=4)
BOUNDS = st.floats(1e-6, 1e3)
PARTS = st.tuples(st.sampled_from(["A", "B", "AB"]), st.integers(1, 8))
BROKEN = st.sampled_from([math.nan, math.inf, -math.inf])
SEEDS = st.integers(0, 2**16)
ROUNDING = 1e-5
"""Of the others' gradients: torch multiplies small matrices of other shapes in another way."""


@cache
def tiny_llama() -> BaseModel:
    with TemporaryDirectory() as folder:
        return tiny_base(Path(folder))


def cut(batch: Tokens, rows: list[int], sizes: list[int]) -> list[Tokens]:
    """Return some rows of a batch in micro-batches of so many; the last takes what is left."""
    pieces, rest = [], rows
    for size in [*sizes, len(rows)]:
        piece, rest = rest[:size], rest[size:]
        if piece:
            pieces.append(Tokens(batch.input_ids[piece], batch.labels[piece]))
    return pieces


def summed(pieces: list[Tokens], part, bound, objective=sft_loss, rows=1) -> torch.Tensor:
    base, (factors, rank) = tiny_llama(), part
    keys = {"clip_norm": bound, "objective": objective, "rows": rows}
    with base.training(base.spec.part(factors, rank=rank)) as trained:
        return private_sum(base, pieces, trained, **keys).values


@given(
    scales=st.lists(st.floats(1e-30, 1e30), min_size=1, max_size=6),
    removed=st.integers(0, 5),
    bound=st.floats(1e-12, 1e12),
    seed=SEEDS,
)
@example(scales=[1.0] * 6, removed=0, bound=1e-12, seed=0)
def test_a_gradient_changes_the_sum_of_clipped_ones_by_at_most_the_bound(
    scales, removed, bound, seed
):
    """Rounding included, whatever the gradients are."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(3, 50), (70, 2)]
    factors = torch.tensor(scales)[:, None, None]
    gradients = [torch.randn(len(scales), *s, generator=generator) * factors for s in shapes]
    whole, without = (ClippedSum([150, 140], clip_norm=bound) for _ in range(2))
    whole.add(gradients)
    rows = [row for row in range(len(scales)) if row != removed % len(scales)]
    if rows:
        without.add([gradient[rows] for gradient in gradients])
    assert float((whole.values - without.values).norm()) <= bound


@settings(max_examples=40)
@given(
    lengths=LENGTHS,
    removed=st.integers(0, 5),
    sizes=st.lists(st.integers(1, 3), max_size=2),
    part=PARTS,
    bound=BOUNDS,
    seed=SEEDS,
)
def test_removing_an_example_changes_a_step_by_at_most_the_bound(
    lengths, removed, sizes, part, bound, seed
):
    """Whichever it is, and however the others are regrouped, as long as they keep their padding."""
    batch = random_tokens(*lengths, seed=seed)
    rows = list(range(len(lengths)))
    others = [row for row in rows if row != removed % len(lengths)]
    whole = summed(cut(batch, rows, []), part, bound)
    without = summed(cut(batch, others, sizes), part, bound)
    assert float((whole - without).norm()) <= bound * (1 + ROUNDING)


@settings(max_examples=25)
@given(
    lengths=PAIRS,
    removed=st.integers(0, 3),
    size=st.integers(1, 3),
    part=PARTS,
    bound=BOUNDS,
    seed=SEEDS,
)
def test_removing_a_pair_changes_a_step_by_at_most_the_bound(
    lengths, removed, size, part, bound, seed
):
    """Both of its answers together, whichever it is, and however the others are regrouped."""
    batch = random_tokens(*[length for pair in lengths for length in pair], seed=seed)
    rows = list(range(2 * len(lengths)))
    others = [row for row in rows if row // 2 != removed % len(lengths)]
    whole = summed(cut(batch, rows, []), part, bound, dpo_of(), rows=2)
    without = summed(cut(batch, others, [2 * size]), part, bound, dpo_of(), rows=2)
    assert float((whole - without).norm()) <= bound * (1 + ROUNDING)


@settings(max_examples=40)
@given(
    lengths=LENGTHS,
    broken=st.integers(0, 5),
    value=BROKEN,
    deep=st.booleans(),
    part=PARTS,
    bound=BOUNDS,
)
def test_an_example_that_is_not_finite_changes_a_step_by_at_most_the_bound(
    lengths, broken, value, deep, part, bound
):
    """The sum is that of the others, whether the loss is broken or its gradient alone."""
    batch, row = random_tokens(*lengths), broken % len(lengths)

    def poisoned(base, batch):
        losses = sft_loss(base, batch)
        one = (losses[row] * 0).sqrt() if deep else losses[row] * value
        return torch.cat([losses[:row], one[None], losses[row + 1 :]])

    rows = list(range(len(lengths)))
    healthy = summed(cut(batch, rows, []), part, bound)
    came = summed(cut(batch, rows, []), part, bound, poisoned)
    without = summed(cut(batch, [r for r in rows if r != row], []), part, bound)
    assert float((came - healthy).norm()) <= bound * (1 + ROUNDING)
    assert float((came - without).norm()) <= bound * ROUNDING
