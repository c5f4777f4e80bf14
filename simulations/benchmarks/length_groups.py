"""Tokens per second with rows of like length in a batch, as ours are, against rows as they come.

An epoch of 64 rows, four a step, through our own loop on a random Llama of about 30 M parameters.
Their lengths are log-normal, as those of instructions are: half of them above 100 tokens, a tenth
above 280, cut at 512. Both ways train on the same rows; what differs is the padding, which is
shown.
"""

import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median

from fedlora.data.batches import Batch, collate, rows_of_step
from fedlora.data.tokens import TokenizedExample
from fedlora.recipe import Recipe
from fedlora.training.base_model import BaseModel
from fedlora.training.gradient import plain_gradient
from fedlora.training.local import train_local
from fedlora.training.objectives import sft_loss
from simulations.benchmarks.measure import Bar, compare, interleaved, report
from simulations.benchmarks.rounds import random_llama

ROWS, SIZE = 64, 4
MEDIAN, SPREAD, LONGEST = 100, 0.8, 512
"""Of the lengths in tokens: the median, the standard deviation of the logarithm, the cut."""


def run(n: int) -> None:
    """Measure and print the result."""
    with tempfile.TemporaryDirectory() as folder:
        base_model = random_llama(Path(folder) / "llama-30m")
        report("length_groups", measured(base_model, uneven_rows(ROWS), n=n), {})


def measured(base_model: str, rows: Sequence[TokenizedExample], *, n: int) -> list[Bar]:
    """Return what an epoch takes with rows of like length together, beside rows as they come."""
    keys = {"base_model": base_model, "micro_batch_size": SIZE, "sequence_len": LONGEST}
    fixed = {"datasets": [{"path": "standard-library"}], "privacy": {"unit": "none"}}
    recipe = Recipe.model_validate(keys | fixed)
    base = BaseModel.load(recipe)
    ways = {"grouped": _grouped(rows), "as they come": _as_they_come(rows)}
    for name, batches in ways.items():
        print(f"{name}: {_padding(batches):.1%} of the tokens are padding")
    epochs: Mapping[str, Callable[[], None]] = {
        name: partial(_train, base, recipe, batches) for name, batches in ways.items()
    }
    seconds = interleaved(epochs, n=n)
    tokens = sum(row.length for row in rows)
    for name, taken in seconds.items():
        print(f"{name}: {tokens / median(taken):,.0f} tokens/s, padding not counted")
    name = "an epoch, grouped / as they come"
    return [compare(name, seconds, ours="grouped", peer="as they come")]


def uneven_rows(count: int) -> list[TokenizedExample]:
    """Return rows of random tokens and of uneven lengths, all supervised."""
    generator, rows = random.Random(0), []
    for _ in range(count):
        drawn = MEDIAN * generator.lognormvariate(0, SPREAD)
        length = min(max(2, round(drawn)), LONGEST)
        ids = tuple(generator.randrange(5, 2000) for _ in range(length))
        rows.append(TokenizedExample(input_ids=ids, supervised=(True,) * length))
    return rows


def _grouped(rows: Sequence[TokenizedExample]) -> list[Batch]:
    """Return the batches of an epoch as a site makes them."""
    lengths = [row.length for row in rows]
    steps = range(len(rows) // SIZE)
    chosen = [rows_of_step(lengths, batch_size=SIZE, seed="benchmark", step=step) for step in steps]
    return [_collated([rows[index] for index in step]) for step in chosen]


def _as_they_come(rows: Sequence[TokenizedExample]) -> list[Batch]:
    """Return the batches of an epoch in a shuffled order."""
    order = random.Random(0).sample(list(rows), len(rows))
    return [_collated(order[start : start + SIZE]) for start in range(0, len(order), SIZE)]


def _collated(rows: Sequence[TokenizedExample]) -> Batch:
    return collate(rows, pad_token_id=0)


def _padding(batches: Sequence[Batch]) -> float:
    real = sum(int(batch.attention_mask.sum()) for batch in batches)
    return 1 - real / sum(batch.attention_mask.numel() for batch in batches)


def _train(base: BaseModel, recipe: Recipe, batches: Sequence[Batch]) -> None:
    train_local(
        base,
        base.adapter(),
        ([batch] for batch in batches),
        gradient=plain_gradient(recipe),
        part=base.spec.part("AB"),
        recipe=recipe,
        first_step=0,
        total_steps=len(batches),
        seed="epoch",
        objective=sft_loss,
    )
