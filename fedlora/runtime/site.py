"""A site while it works: its own rows, tokenised once, and the warm base that it trains on."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Self

from fedlora.adapter import AdapterSpec, AdapterState
from fedlora.data.batches import Batch, collate, rows_of_step
from fedlora.data.formats import Example
from fedlora.data.partition import site_examples
from fedlora.data.tokens import TokenizedExample, tokenize
from fedlora.recipe import Recipe
from fedlora.training.base_model import BaseModel
from fedlora.training.evaluation import Evaluation, evaluate
from fedlora.training.local import LocalResult, train_local


@lru_cache(maxsize=1)
def resident_base(recipe: Recipe) -> BaseModel:
    """Return the recipe's base model, loaded once in this process."""
    return BaseModel.load(recipe)


@dataclass(frozen=True, kw_only=True, eq=False)
class Site:
    """Data and base of one site."""

    name: str
    recipe: Recipe
    base: BaseModel
    train_rows: Sequence[TokenizedExample]
    held_out_rows: Sequence[TokenizedExample]

    @classmethod
    @cache
    def open(cls, recipe: Recipe, name: str) -> Self:
        """Read and tokenise the site's data and load the base, once in this process.

        Raises:
            DataError: the data cannot be used.
            BaseModelError: the base cannot be loaded.
        """
        examples = site_examples(recipe, name)
        base = resident_base(recipe)

        def tokenized(rows: Sequence[Example]) -> list[TokenizedExample]:
            return [
                tokenize(
                    row,
                    base.tokenizer,
                    sequence_len=recipe.sequence_len,
                    train_on_inputs=recipe.train_on_inputs,
                )
                for row in rows
            ]

        return cls(
            name=name,
            recipe=recipe,
            base=base,
            train_rows=tokenized(examples.train),
            held_out_rows=tokenized(examples.held_out),
        )

    def train_round(self, received: AdapterState, *, number: int) -> LocalResult:
        """Train the received adapter for the steps of round ``number`` (from 1)."""
        steps = self.recipe.federation.local_steps
        factors = self.recipe.federation.facts.trained(number)
        return self.train(
            received,
            part=self.base.spec.part(factors, rank=self.recipe.rank_of(self.name)),
            first_step=(number - 1) * steps,
            steps=steps,
            total_steps=self.recipe.total_steps,
        )

    def train(
        self,
        received: AdapterState,
        *,
        part: AdapterSpec,
        first_step: int,
        steps: int,
        total_steps: int,
        on_step: Callable[[int, float], None] | None = None,
    ) -> LocalResult:
        """Train a part of the received adapter for ``steps`` of a training of ``total_steps``.

        The result depends on the arguments, the rows and the recipe alone.
        """
        return train_local(
            self.base,
            received,
            self.batches(first_step, steps),
            part=part,
            recipe=self.recipe,
            first_step=first_step,
            total_steps=total_steps,
            seed=f"{self.recipe.seed}/{self.name}/{first_step}",
            on_step=on_step,
        )

    def evaluate(self, state: AdapterState) -> Evaluation:
        """Return the loss of the base with ``state`` on the held-out rows."""
        rows = sorted(self.held_out_rows, key=lambda row: len(row.input_ids))
        size = self.recipe.micro_batch_size
        chunks = (rows[start : start + size] for start in range(0, len(rows), size))
        return evaluate(self.base, state, map(self._collate, chunks))

    def batches(self, first_step: int, steps: int) -> Iterator[Batch]:
        """Yield the micro-batches of ``steps`` optimiser steps from ``first_step`` on."""
        lengths = tuple(len(row.input_ids) for row in self.train_rows)
        per_step = self.recipe.gradient_accumulation_steps
        for index in range(first_step * per_step, (first_step + steps) * per_step):
            rows = rows_of_step(
                lengths,
                batch_size=self.recipe.micro_batch_size,
                seed=f"{self.recipe.seed}/{self.name}",
                step=index,
            )
            yield self._collate([self.train_rows[row] for row in rows])

    def _collate(self, rows: Sequence[TokenizedExample]) -> Batch:
        return collate(rows, pad_token_id=self.base.pad_token_id)
