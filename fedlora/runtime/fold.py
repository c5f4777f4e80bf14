"""One round at the aggregator: admit each update, spool it, fold the spool in cohort order.

Sums in arrival order would not be reproducible, so an update is folded when every client before it
in the cohort has answered or was given up; under a robust rule, which must see all of them first,
when the last has. Two updates are in memory at most.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch

from fedlora import products
from fedlora.adapter import AdapterState, AdapterUpdate
from fedlora.aggregation import RULES, Aggregator, Rule, Vote
from fedlora.errors import AdapterError, FedloraError, WireError
from fedlora.gate.inspection import inspect_metrics, inspect_update
from fedlora.recipe import Recipe
from fedlora.runtime.records import envelope_of_update
from fedlora.runtime.spool import Spool
from fedlora.wire.codec import Envelope, decode_update


@dataclass(kw_only=True)
class Fold:
    """The fold of one round. Each client of the cohort is settled exactly once."""

    recipe: Recipe
    envelope: Envelope
    cohort: Sequence[str]
    global_adapter: AdapterState
    """What the clients received."""
    aggregator: Aggregator
    spool: Spool
    max_norm: float | None
    """Largest norm that an update may have; none in the first round, or when nothing moved yet."""
    folded: dict[str, dict[str, Any]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    _spooled: set[str] = field(default_factory=set)
    _next: int = 0

    def begin(self) -> None:
        """Start the round, with what was spooled before a stop."""
        self.aggregator.begin(self.global_adapter)
        kept = self.spool.sites() & set(self.cohort)
        self._spooled = {site for site in kept if self._is_good(site)}
        self._advance()

    @property
    def open(self) -> tuple[str, ...]:
        """The clients that are not settled yet, in cohort order."""
        settled = self._spooled | self.refused.keys()
        return tuple(site for site in self.cohort if site not in settled)

    def admit(self, site: str, payload: bytes, metrics: Mapping[str, int | float]) -> None:
        """Check a client's update, keep it, and fold whatever is complete up to here.

        Raises:
            WireError: the update is not what this round expects, or the client has answered.
            InspectionError: its values or metrics are not acceptable.
        """
        if site not in self.open:
            raise WireError(f"{site} has already answered round {self.envelope.round}.")
        answer = self._check(site, payload, inspect_metrics(metrics))
        self.spool.put(site, payload, answer.metrics)
        self._spooled.add(site)
        self._advance(answer)

    def refuse(self, site: str, reason: str) -> None:
        """Settle a client without an update; one whose update was accepted stays accepted."""
        if site in self.open:
            self.refused[site] = reason
            self._advance()

    def median_norm(self) -> float | None:
        """Return the median norm of the folded updates."""
        return median(f["norm"] for f in self.folded.values()) if self.folded else None

    def _is_good(self, site: str) -> bool:
        """Tell whether a client's spooled update is good; if it is not, the client is asked again.

        A disk may have damaged it, or the recipe was put right between stop and restart.
        """
        try:
            self._spooled_answer(site)
        except (FedloraError, ValueError, OSError):
            return False
        return True

    def _spooled_answer(self, site: str) -> "_Answer":
        return self._check(site, *self.spool.get(site))

    def _check(self, site: str, payload: bytes, metrics: Mapping[str, int | float]) -> "_Answer":
        wire = self.recipe.wire
        update = decode_update(
            payload,
            envelope_of_update(self.envelope, self.recipe, site),
            codec=wire.codec,
            compress=wire.compress,
            max_bytes=wire.max_bytes,
        )
        inspect_update(update, spec=update.spec, max_examples=self.recipe.max_examples)
        norm = self._norm(update)
        if self.max_norm and norm > self.max_norm:
            raise WireError(
                f"The update's norm {norm:.3g} is above {self.max_norm:.3g}, which is "
                f"{self.recipe.federation.max_update_norm:g} times the last round's median "
                "(federation.max_update_norm)."
            )
        return _Answer(site=site, update=update, norm=norm, bytes=len(payload), metrics=metrics)

    def _norm(self, update: AdapterUpdate) -> float:
        """Return an update's norm in the space in which it is combined.

        A norm in any other space could be gamed: 100·B and A/100 leave the product, but not a mean
        of factors, as it was.
        """
        if self.recipe.federation.facts.plain_sum:
            return update.norm()
        return math.sqrt(max(0.0, self._inner(update, update)))

    def _inner(self, one: AdapterUpdate, other: AdapterUpdate) -> float:
        """Return the inner product of two updates in that same space."""
        if self.recipe.federation.facts.plain_sum:
            return one.inner(other)
        return products.change_inner(self.global_adapter, one, other)

    def _advance(self, fresh: "_Answer | None" = None) -> None:
        """Fold what is complete, in the order of the cohort; ``fresh`` need not be read again."""
        rule = RULES.get(self.recipe.federation.robust)
        if rule is None:
            while self._next < len(self.cohort) and self.cohort[self._next] not in self.open:
                site = self.cohort[self._next]
                self._next += 1
                if site in self._spooled:
                    known = fresh if fresh and fresh.site == site else self._spooled_answer(site)
                    self._fold(known, Vote(weight=self._weight(known), share=1.0))
        elif self._spooled and not self.open:
            for site, vote in self._votes(rule).items():
                self._fold(self._spooled_answer(site), vote)

    def _votes(self, rule: Rule) -> dict[str, Vote]:
        """Ask the robust rule what each update shall count, two updates in memory at a time."""
        sites = [site for site in self.cohort if site in self._spooled]
        gram = torch.zeros(len(sites), len(sites), dtype=torch.float64)
        weights = []
        for row, site in enumerate(sites):
            one = self._spooled_answer(site)
            weights.append(self._weight(one))
            gram[row, row] = one.norm**2
            for column in range(row):
                other = self._spooled_answer(sites[column])
                gram[row, column] = gram[column, row] = self._inner(one.update, other.update)
        votes = rule(gram, weights, attackers=self.recipe.attackers)
        return dict(zip(sites, votes, strict=True))

    def _weight(self, answer: "_Answer") -> float:
        federation = self.recipe.federation
        if federation.weighting == "uniform":
            return 1.0
        examples = answer.update.num_examples
        return float(min(examples, federation.max_weight or examples))

    def _fold(self, answer: "_Answer", vote: Vote) -> None:
        if not vote.share:
            self.refused[answer.site] = vote.reason
            return
        try:
            self.aggregator.add(answer.update, vote.weight, share=vote.share)
        except AdapterError as error:
            self.refused[answer.site] = str(error)
            return
        self.folded[answer.site] = {
            **answer.metrics,
            "num_examples": answer.update.num_examples,
            "weight": vote.weight,
            "share": vote.share,
            "norm": answer.norm,
            "bytes": answer.bytes,
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class _Answer:
    """A client's update that passed all checks, and what the round's record says of it."""

    site: str
    update: AdapterUpdate
    norm: float
    bytes: int
    metrics: Mapping[str, int | float]
