"""A site while it works: its own rows, tokenised once, and the warm base that it trains on."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any, Self

from torch import Tensor

from fedlora.adapter import AdapterSpec, AdapterState
from fedlora.data.batches import Batch, mixture, rows_of_step
from fedlora.data.formats import on_problem_of
from fedlora.data.partition import site_examples
from fedlora.data.public_text import public_examples
from fedlora.data.tokens import tokenize
from fedlora.privacy.charge import Charge
from fedlora.privacy.dp_sgd.private_gradient import DpSgd
from fedlora.privacy.source import RoundSource
from fedlora.recipe import Recipe
from fedlora.runtime.processes import log
from fedlora.runtime.site.batching import Batching
from fedlora.runtime.site.objectives import Objective, objective_of
from fedlora.runtime.site.objectives.objective import Tokenized
from fedlora.runtime.site.objectives.sft import Sft
from fedlora.runtime.site.private_steps import self_test
from fedlora.runtime.site.rows import prepare, require_rows, tell_of_excess
from fedlora.runtime.site.steps import watched
from fedlora.sections import AT_SITE
from fedlora.training.base_model import BaseModel
from fedlora.training.evaluation import Evaluation, clipped_loss_sum, evaluate, example_losses
from fedlora.training.gradient import plain_gradient
from fedlora.training.local import LocalResult, train_local

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
    row_weights: Sequence[float]
    """How often each of them is visited relative to the others; 1 on average."""
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
        on_problem = on_problem_of(recipe)
        train = prepare(examples.train, recipe, base.tokenizer, on_problem=on_problem)
        held_out = prepare(examples.held_out, recipe, base.tokenizer, on_problem=on_problem)
        require_rows(recipe, name, train=train, held_out=held_out)
        tell_of_excess(recipe, name, train=train, held_out=held_out)
        sources = [examples.sources[place] for place in train.places]
        return cls(
            name=name,
            recipe=recipe,
            base=base,
            objective=objective_of(recipe),
            train_rows=train.rows,
            row_weights=mixture(sources, {source: source.weight for source in sources}),
            held_out_rows=held_out.rows,
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

    def train_round(
        self, received: AdapterState, *, number: int, correction: AdapterState | None = None
    ) -> LocalResult:
        """Train the received adapter for the steps of round ``number`` (from 1)."""
        steps = self.recipe.federation.local_steps
        return self.train(
            received,
            part=self._part(number),
            first_step=(number - 1) * steps,
            steps=steps,
            total_steps=self.recipe.total_steps,
            proximal=self.recipe.federation.proximal_mu,
            correction=correction,
            on_step=watched(first_step=(number - 1) * steps),
        )

    def train_round_privately(
        self,
        received: AdapterState,
        *,
        number: int,
        mechanism: DpSgd,
        source: RoundSource,
        correction: AdapterState | None = None,
    ) -> LocalResult:
        """Train likewise, but so that the result tells little of any one row.

        What else the result says, losses and counts, is not private: it must not leave the site.

        Args:
            received: the adapter to begin with.
            number: of the round, from 1.
            mechanism: takes the steps that were charged.
            source: where samples and dropout come from.
            correction: of each step (``Drift``).

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
            objective=self._losses_after(received),
            proximal=self.recipe.federation.proximal_mu,
            correction=correction,
            on_step=watched(first_step=(number - 1) * self.recipe.federation.local_steps),
        )

    def train(
        self,
        received: AdapterState,
        *,
        part: AdapterSpec,
        first_step: int,
        steps: int,
        total_steps: int,
        proximal: float = 0.0,
        correction: AdapterState | None = None,
        on_step: Callable[[int, float], None] | None = None,
    ) -> LocalResult:
        """Train a part of the received adapter for ``steps`` of a training of ``total_steps``.

        The result depends on the arguments, the rows and the recipe alone. Of a step's rows one
        that is there several times counts as one example.
        """
        result = train_local(
            self.base,
            received,
            self.batches(first_step, steps),
            gradient=plain_gradient(self.recipe),
            part=part,
            recipe=self.recipe,
            first_step=first_step,
            total_steps=total_steps,
            seed=f"{self.recipe.seed}/{self.name}/{first_step}",
            objective=self._losses_after(received),
            proximal=proximal,
            correction=correction,
            on_step=on_step,
        )
        visited = (chain(*self._step(step)) for step in range(first_step, first_step + steps))
        return replace(result, examples=sum(len(set(rows)) for rows in visited))

    def evaluate(self, state: AdapterState | None) -> Evaluation:
        """Return what the objective measures of the base, with ``state`` or alone, held-out."""
        batches = self._batching.sorted_by_length(self.held_out_rows)
        return evaluate(self.base, state, batches, measure=self.objective.measure)

    def evaluate_public(self, state: AdapterState | None) -> Evaluation:
        """Return the loss of the base, with ``state`` or alone, on the public text."""
        text = Sft(self.recipe)
        batches = replace(self._batching, objective=text).sorted_by_length(self.public_rows)
        return evaluate(self.base, state, batches, measure=text.measure)

    def losses(self, rows: Sequence[Tokenized], state: AdapterState | None) -> list[float]:
        """Return the loss of each row, in an order of its own; the same each time.

        Args:
            rows: of this site.
            state: the adapter; none for the base alone.
        """
        batches, losses = self._batching.sorted_by_length(rows), self._losses_after(None)
        return example_losses(self.base, state, batches, losses=losses)

    def clipped_loss_sum(self, state: AdapterState | None, *, largest: float) -> float:
        """Return the sum over held-out rows of their losses, each cut to ``largest``."""
        batches, losses = self._batching.padded_alone(self.held_out_rows), self._losses_after(None)
        return clipped_loss_sum(self.base, state, batches, losses=losses, largest=largest)

    def batches(self, first_step: int, steps: int) -> Iterator[list[Batch]]:
        """Yield the micro-batches of each of ``steps`` optimiser steps from ``first_step`` on."""
        for step in range(first_step, first_step + steps):
            visited = ([self.train_rows[i] for i in rows] for rows in self._step(step))
            yield [self._batching.batch(rows) for rows in visited]

    def _losses_after(self, received: AdapterState | None) -> Callable[[BaseModel, Batch], Tensor]:
        """Return the objective of a training that begins with an adapter, or none."""
        return lambda base, batch: self.objective.losses(base, batch, received)

    def _sampled(self, charge: Charge, source: RoundSource) -> Iterator[list[Batch]]:
        """Yield the micro-batches of private steps: each a Poisson sample, of which none is cut."""
        for _ in range(charge.steps):
            drawn = source.poisson_sample(len(self.train_rows), charge.sampling_rate)
            yield list(self._batching.padded_alone([self.train_rows[row] for row in drawn]))

    @property
    def _batching(self) -> Batching:
        recipe = self.recipe
        return Batching(
            self.objective, recipe.micro_batch_size, self.base.pad_token_id, recipe.sequence_len
        )

    def _part(self, number: int) -> AdapterSpec:
        """Return the factors and components that the site trains in round ``number``."""
        factors = self.recipe.federation.facts.trained(number)
        return self.base.spec.part(factors, rank=self.recipe.rank_of(self.name))

    @cached_property
    def _lengths(self) -> tuple[int, ...]:
        return tuple(row.length for row in self.train_rows)

    @cached_property
    def _weights(self) -> tuple[float, ...] | None:
        """Weights that make a difference."""
        return tuple(self.row_weights) if len(set(self.row_weights)) > 1 else None

    def _step(self, step: int) -> list[list[int]]:
        """Return which rows are in each micro-batch of a step."""
        per_step = self.recipe.gradient_accumulation_steps
        return [
            rows_of_step(
                self._lengths,
                batch_size=self.recipe.micro_batch_size,
                seed=f"{self.recipe.seed}/{self.name}",
                step=index,
                weights=self._weights,
            )
            for index in range(step * per_step, (step + 1) * per_step)
        ]
