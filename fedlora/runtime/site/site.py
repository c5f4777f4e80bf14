"""A site while it works: its own rows, tokenised once, and the warm base that it trains on."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

from fedlora.adapter import AdapterSpec, AdapterState
from fedlora.data.batches import Batch, rows_of_step
from fedlora.data.partition import site_examples
from fedlora.data.public_text import public_examples
from fedlora.data.tokens import tokenize
from fedlora.privacy.charge import Charge
from fedlora.privacy.dp_sgd.private_gradient import DpSgd
from fedlora.privacy.source import RoundSource
from fedlora.recipe import Recipe
from fedlora.runtime.processes import log
from fedlora.runtime.site.objectives import Objective, objective_of
from fedlora.runtime.site.objectives.objective import Tokenized
from fedlora.runtime.site.private_steps import self_test
from fedlora.sections import AT_SITE
from fedlora.training.base_model import BaseModel
from fedlora.training.evaluation import Evaluation, clipped_loss_sum, evaluate, example_losses
from fedlora.training.gradient import plain_gradient
from fedlora.training.local import LocalResult, train_local

_PADDING = 64
"""Private rows are padded to a multiple of so many tokens."""


_bases: dict[Recipe, BaseModel] = {}
_sites: dict[tuple[Recipe, str], "Site"] = {}


def resident_base(recipe: Recipe) -> BaseModel:
    """Return the recipe's base model, which stays loaded until another recipe's is asked for.

    Its sites are closed with it, before the next is loaded: a card may not hold two.
    """
    if recipe not in _bases:
        _bases.clear()
        _sites.clear()
        _bases[recipe] = BaseModel.load(recipe)
        log.say("base model loaded", base_model=recipe.base_model)
    return _bases[recipe]


@dataclass(frozen=True, kw_only=True, eq=False)
class Site:
    """Data and base of one site."""

    name: str
    recipe: Recipe
    base: BaseModel
    objective: Objective[Any, Any, Any]
    train_rows: Sequence[Tokenized]
    held_out_rows: Sequence[Tokenized]

    @staticmethod
    def open(recipe: Recipe, name: str) -> "Site":
        """Read and tokenise the site's data and load the base; both stay, as ``resident_base``.

        A site that protects examples first tests, without them, the noise that is to do so.

        Raises:
            DataError: the data cannot be used.
            BaseModelError: the base cannot be loaded.
            RunError: the noise is not what it should be.
            BudgetError: no noise keeps what the recipe promises.
        """
        if (recipe, name) not in _sites:
            _sites[recipe, name] = Site._read(recipe, name)
        return _sites[recipe, name]

    @classmethod
    def _read(cls, recipe: Recipe, name: str) -> Self:
        if recipe.privacy.unit == "example":
            self_test(recipe, name)
        examples = site_examples(recipe, name)
        base = resident_base(recipe)

        objective = objective_of(recipe)
        return cls(
            name=name,
            recipe=recipe,
            base=base,
            objective=objective,
            train_rows=[objective.tokenize(row, base.tokenizer) for row in examples.train],
            held_out_rows=[objective.tokenize(row, base.tokenizer) for row in examples.held_out],
        )

    @cached_property
    def public_rows(self) -> Sequence[Tokenized]:
        """The public text on which the recipe bounds forgetting; none where nobody names one.

        Every token is learned, as in plain text, whatever the recipe says of prompts.

        Raises:
            DataError: it cannot be read.
        """
        text = self.recipe.publish.forgetting
        if text is None or text.path == AT_SITE:
            return ()
        tokenizer, length = self.base.tokenizer, self.recipe.sequence_len
        return [
            tokenize(row, tokenizer, sequence_len=length, train_on_inputs=True)
            for row in public_examples(text)
        ]

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the site's rows."""
        parts = (self.train_rows, self.held_out_rows)
        rows = [[row.ids for row in part] for part in parts]
        return hashlib.sha256(json.dumps(rows).encode()).digest()

    def train_round(self, received: AdapterState, *, number: int) -> LocalResult:
        """Train the received adapter for the steps of round ``number`` (from 1)."""
        steps = self.recipe.federation.local_steps
        return self.train(
            received,
            part=self._part(number),
            first_step=(number - 1) * steps,
            steps=steps,
            total_steps=self.recipe.total_steps,
        )

    def train_round_privately(
        self, received: AdapterState, *, number: int, mechanism: DpSgd, source: RoundSource
    ) -> LocalResult:
        """Train likewise, but so that the result tells little of any one row.

        What else the result says, losses and counts, is not private: it must not leave the site.

        Args:
            received: the adapter to begin with.
            number: of the round, from 1.
            mechanism: takes the steps that were charged.
            source: where samples and dropout come from.

        Raises:
            RunError: noise, clipping or training is not what it should be.
        """
        return train_local(
            self.base,
            received,
            self._sampled(mechanism.charge, source),
            gradient=mechanism.gradient,
            part=self._part(number),
            recipe=self.recipe,
            first_step=(number - 1) * self.recipe.federation.local_steps,
            total_steps=self.recipe.total_steps,
            seed=source.secret(),
            objective=self.objective.losses,
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
            gradient=plain_gradient(self.recipe),
            part=part,
            recipe=self.recipe,
            first_step=first_step,
            total_steps=total_steps,
            seed=f"{self.recipe.seed}/{self.name}/{first_step}",
            objective=self.objective.losses,
            on_step=on_step,
        )

    def evaluate(self, state: AdapterState) -> Evaluation:
        """Return the loss of the base with ``state`` on the held-out rows."""
        batches = self._micro_batches(self.held_out_rows)
        return evaluate(self.base, state, batches, measure=self.objective.measured)

    def evaluate_public(self, state: AdapterState) -> Evaluation:
        """Return the loss of the base with ``state`` on the public text."""
        return evaluate(self.base, state, self._micro_batches(self.public_rows))

    def losses(self, rows: Sequence[Tokenized], state: AdapterState | None) -> list[float]:
        """Return the mean loss per token of each row, in an order of its own; the same each time.

        Args:
            rows: of this site.
            state: the adapter; none for the base alone.
        """
        batches = self._micro_batches(rows)
        return example_losses(self.base, state, batches, measure=self.objective.measured)

    def clipped_loss_sum(self, state: AdapterState, *, largest: float) -> float:
        """Return the sum over held-out rows of their mean losses, each cut to ``largest``."""
        batches = self._padded_alone(self.held_out_rows)
        return clipped_loss_sum(
            self.base, state, batches, largest=largest, measure=self.objective.measured
        )

    def batches(self, first_step: int, steps: int) -> Iterator[list[Batch]]:
        """Yield the micro-batches of each of ``steps`` optimiser steps from ``first_step`` on."""
        lengths = tuple(row.length for row in self.train_rows)
        per_step = self.recipe.gradient_accumulation_steps
        for step in range(first_step, first_step + steps):
            yield [self._batch(lengths, step * per_step + index) for index in range(per_step)]

    def _sampled(self, charge: Charge, source: RoundSource) -> Iterator[list[Batch]]:
        """Yield the micro-batches of private steps: each a Poisson sample, of which none is cut."""
        for _ in range(charge.steps):
            drawn = source.poisson_sample(len(self.train_rows), charge.sampling_rate)
            yield list(self._padded_alone([self.train_rows[row] for row in drawn]))

    def _padded_alone(self, rows: Sequence[Tokenized]) -> Iterator[Batch]:
        """Yield all rows once, each padded to a length that it alone decides.

        Padding changes the rounding of a row's gradient: another row must not decide it. None is
        padded beyond ``sequence_len``: a base may have no more places.
        """
        groups: dict[int, list[Tokenized]] = {}
        for row in rows:
            length = min(-(-row.length // _PADDING) * _PADDING, self.recipe.sequence_len)
            groups.setdefault(length, []).append(row)
        size = self.recipe.micro_batch_size
        for length, group in sorted(groups.items()):
            for start in range(0, len(group), size):
                yield self._collate(group[start : start + size], length=length)

    def _micro_batches(self, rows: Sequence[Tokenized]) -> Iterator[Batch]:
        """Yield all rows once, those of like length together."""
        rows = sorted(rows, key=lambda row: row.length)
        size = self.recipe.micro_batch_size
        return (self._collate(rows[i : i + size]) for i in range(0, len(rows), size))

    def _part(self, number: int) -> AdapterSpec:
        """Return the factors and components that the site trains in round ``number``."""
        factors = self.recipe.federation.facts.trained(number)
        return self.base.spec.part(factors, rank=self.recipe.rank_of(self.name))

    def _batch(self, lengths: Sequence[int], index: int) -> Batch:
        rows = rows_of_step(
            lengths,
            batch_size=self.recipe.micro_batch_size,
            seed=f"{self.recipe.seed}/{self.name}",
            step=index,
        )
        return self._collate([self.train_rows[row] for row in rows])

    def _collate(self, rows: Sequence[Tokenized], *, length: int | None = None) -> Batch:
        batch: Batch = self.objective.collate(
            rows, pad_token_id=self.base.pad_token_id, length=length
        )
        return batch
