"""One round at the aggregator: admit each update, spool it, fold the spool in cohort order.

Sums in arrival order would not be reproducible, so an update is folded when every client before it
in the cohort has answered or was given up. Where the updates must be held against each other first,
by a robust rule or because no earlier round says how large they may be, the fold begins when the
last client is settled. Two updates are in memory at most.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, median_low
from typing import Any

import torch
from torch import Tensor

from fedlora import products
from fedlora.adapter import AdapterState, AdapterUpdate
from fedlora.aggregation import RULES, Aggregator, Rule, Vote
from fedlora.errors import AdapterError, FedloraError, RunError, WireError
from fedlora.gate.inspection import inspect_metrics, require_sound
from fedlora.methods import COORDINATE_WISE
from fedlora.recipe import Recipe
from fedlora.runtime.records import envelope_of_update
from fedlora.runtime.spool import Spool
from fedlora.wire.codec import Envelope, decode_update


@dataclass(frozen=True, kw_only=True)
class Admitted:
    """What is remembered of an update that passed all checks; its values are in the spool."""

    num_examples: int
    norm: float
    """In the space in which it is combined."""
    bytes: int
    metrics: Mapping[str, int | float]


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
    """Largest norm that an update may have, by the round before; none where it does not say."""
    admitted: dict[str, Admitted] = field(default_factory=dict)
    """The clients whose update passed all checks, in order of arrival."""
    folded: dict[str, dict[str, Any]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    received_bytes: int = 0
    """Of all updates of the cohort, refused ones too."""
    sent_bytes: int = 0
    """That its clients were sent besides what they train on; none."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What the round's record says besides; nothing."""
    _next: int = 0
    _memory: list[Tensor] = field(default_factory=list)
    """Where updates are decoded, used again for each; the second is for pairs."""

    def begin(self) -> None:
        """Start the round, with what was spooled before a stop."""
        self.aggregator.begin(self.global_adapter)
        spooled = self.spool.sites()
        for site in self.cohort:
            if site in spooled:
                self._take_up(site)
        self._advance()

    @property
    def open(self) -> tuple[str, ...]:
        """The clients that are not settled yet, in cohort order."""
        settled = self.admitted.keys() | self.refused.keys()
        return tuple(site for site in self.cohort if site not in settled)

    def admit(self, site: str, payload: bytes, metrics: Mapping[str, int | float]) -> None:
        """Check a client's update, keep it, and fold whatever is complete up to here.

        Raises:
            WireError: the update is not what this round expects, or the client has answered.
            InspectionError: its values or metrics are not acceptable.
            StorageError: the spool cannot be written or read.
        """
        if site not in self.open:
            raise WireError(f"{site} has already answered round {self.envelope.round}.")
        self.received_bytes += len(payload)
        metrics = inspect_metrics(metrics, unit=self.recipe.privacy.unit)
        update, facts = self._check(site, payload, metrics)
        self.spool.put(site, payload, facts.metrics)
        self.admitted[site] = facts
        if self._waits_for_all:
            self._advance()  # the fold reads it again
        else:
            self._advance(fresh=(site, update))

    def require_quorum(self, path: Path) -> None:
        """Do nothing if enough updates were accepted, and some are left by the robust rule.

        Args:
            path: of the run that is to be resumed.

        Raises:
            RunError: too few; the message gives each client's reason.
        """
        number, quorum = self.envelope.round, self.recipe.quorum_of(len(self.cohort))
        reasons = "".join(f"\n  {site}: {reason}" for site, reason in self.refused.items())
        if len(self.admitted) < quorum:
            raise RunError(
                f"Round {number}: {len(self.admitted)} of {len(self.cohort)} updates were "
                f"accepted, but the quorum is {quorum}. What was accepted is kept: put the rest "
                f"right, then resume {path}.{reasons}"
            )
        if self.admitted and not self.folded:
            raise RunError(
                f"Round {number}: of {len(self.admitted)} updates, federation.robust: "
                f"{self.recipe.federation.robust} left none. Take another rule in "
                f"{path / 'recipe.yaml'}, then resume.{reasons}"
            )

    def finish(self) -> AdapterUpdate:
        """Return the round's update, and keep no memory for others.

        Raises:
            AdapterError: no update was folded.
        """
        self._memory.clear()
        return self.aggregator.finish()

    def refuse(self, site: str, reason: str) -> None:
        """Settle a client without an update; one whose update was accepted stays accepted."""
        if site in self.open:
            self.refused[site] = reason
            self._advance()

    def median_norm(self) -> float | None:
        """Return the median norm of the folded updates, where it may be known."""
        norms = [facts["norm"] for facts in self.folded.values() if "norm" in facts]
        return median(norms) if norms else None

    def _take_up(self, site: str) -> None:
        """Take a spooled update as admitted if it is good; if not, the client is asked again.

        A disk may have damaged it, or the recipe was put right between stop and restart.
        """
        try:
            payload, metrics = self.spool.get(site)
            _, self.admitted[site] = self._check(site, payload, metrics)
        except FedloraError:
            return
        self.received_bytes += len(payload)

    def _check(
        self, site: str, payload: bytes, metrics: Mapping[str, int | float]
    ) -> tuple[AdapterUpdate, Admitted]:
        update = self._decode(site, payload)
        require_sound(update, spec=update.spec, examples=self.recipe.examples_of_round)
        norm = self._norm(update)
        if self.max_norm and norm > self.max_norm:
            raise WireError(self._too_large(norm, self.max_norm, of="the last round's"))
        count = update.num_examples
        return update, Admitted(num_examples=count, norm=norm, bytes=len(payload), metrics=metrics)

    def _too_large(self, norm: float, bound: float, *, of: str) -> str:
        times = self.recipe.federation.max_update_norm
        return (
            f"The update's norm {norm:.3g} is above {bound:.3g}, which is {times:g} times {of} "
            "median (federation.max_update_norm)."
        )

    def _decode(self, site: str, payload: bytes, *, place: int = 0) -> AdapterUpdate:
        """Return an update whose values last until the next is decoded to the same place."""
        wire = self.recipe.wire
        while len(self._memory) <= place:
            self._memory.append(torch.empty(self.global_adapter.spec.size))
        return decode_update(
            payload,
            envelope_of_update(self.envelope, self.recipe, site),
            codec=wire.codec,
            compress=wire.compress,
            max_bytes=wire.max_bytes,
            out=self._memory[place],
        )

    def _spooled(self, site: str, *, place: int = 0) -> AdapterUpdate:
        """Return an update that was admitted."""
        payload, _ = self.spool.get(site)
        return self._decode(site, payload, place=place)

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

    def _advance(self, *, fresh: tuple[str, AdapterUpdate] | None = None) -> None:
        """Fold what can be folded, in the order of the cohort; ``fresh`` need not be read again."""
        if self._waits_for_all:
            if not self.open and self.admitted:
                self._fold_all()
            return
        while self._next < len(self.cohort) and self.cohort[self._next] not in self.open:
            site = self.cohort[self._next]
            self._next += 1
            if site in self.admitted:
                known = fresh[1] if fresh and fresh[0] == site else self._spooled(site)
                self._fold(site, known, Vote(weight=self._weight(site)))

    @property
    def _waits_for_all(self) -> bool:
        return not self.max_norm or self._rule is not None

    @property
    def _rule(self) -> Rule | None:
        return RULES.get(self.recipe.federation.robust)

    def _fold_all(self) -> None:
        """Fold the updates that are not too large beside the others, as the rule says."""
        sites = [site for site in self.cohort if site in self.admitted]
        if not self.max_norm:
            norms = {site: self.admitted[site].norm for site in sites}
            bound = self.recipe.federation.max_update_norm * median_low(norms.values())
            for site in [site for site in sites if norms[site] > bound > 0]:
                self.refused[site] = self._too_large(norms[site], bound, of="this round's")
                sites.remove(site)
        weights = list(map(self._weight, sites))
        votes = [Vote(weight=weight) for weight in weights]
        if rule := self._rule:
            votes = rule(self._gram(sites), weights, attackers=self.recipe.attackers)
        for site, vote in zip(sites, votes, strict=True):
            if vote.share:
                self._fold(site, self._spooled(site), vote)
            else:
                self.refused[site] = vote.reason

    def _gram(self, sites: Sequence[str]) -> Tensor:
        """Return the inner products of the updates, two of them in memory at a time."""
        gram = torch.zeros(len(sites), len(sites), dtype=torch.float64)
        for row, site in enumerate(sites):
            gram[row, row] = self.admitted[site].norm ** 2
            if row:
                one = self._spooled(site)
            for column in range(row):
                other = self._spooled(sites[column], place=1)
                gram[row, column] = gram[column, row] = self._inner(one, other)
        return gram

    def _weight(self, site: str) -> float:
        federation = self.recipe.federation
        if federation.weighting == "uniform" or federation.robust in COORDINATE_WISE:
            return 1.0
        examples = self.admitted[site].num_examples
        return float(min(examples, federation.max_weight or examples))

    def _fold(self, site: str, update: AdapterUpdate, vote: Vote) -> None:
        try:
            self.aggregator.add(update, vote.weight, share=vote.share)
        except AdapterError as error:
            self.refused[site] = str(error)
            return
        facts = self.admitted[site]
        self.folded[site] = {
            **facts.metrics,
            "num_examples": facts.num_examples,
            "weight": vote.weight,
            "share": vote.share,
            "bytes": facts.bytes,
        }
        if self.recipe.privacy.unit != "client":
            self.folded[site]["norm"] = facts.norm
