"""One round at the aggregator that sees no single update: a secure sum in place of a fold."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord
from flwr.app import Message as Instruction
from google.protobuf.message import Message

from fedlora.adapter import AdapterState, AdapterUpdate
from fedlora.aggregation import Aggregator
from fedlora.errors import FedloraError, InspectionError, RunError, SecureSumError, StorageError
from fedlora.privacy.secure_aggregation.collector import Collector
from fedlora.privacy.secure_aggregation.fixed_point import Vector
from fedlora.privacy.secure_aggregation.statements import read
from fedlora.recipe import Recipe
from fedlora.runtime import records
from fedlora.runtime.aggregator.central_budget import ClientBudget
from fedlora.runtime.aggregator.exchange import Exchange, content_of
from fedlora.runtime.aggregator.site_logs import SiteLogs
from fedlora.runtime.fixed_point import fixed_point_of
from fedlora.runtime.secure_terms import REVEALED, context_of, terms_of
from fedlora.secure_sum.v1 import secure_sum_pb2 as pb
from fedlora.wire.codec import Envelope, encode_state

_Take = Callable[[str, bytes], None]
"""Takes a member's answer, or raises an error."""


@dataclass(kw_only=True)
class SecureSum:
    """One round's sum. Each client of the cohort is settled exactly once.

    It stands where a ``Fold`` does. What is admitted are the keys of those who have trained; the
    update is summed in ``finish``, of those who answer each stage within its time.
    """

    recipe: Recipe
    envelope: Envelope
    cohort: Sequence[str]
    global_adapter: AdapterState
    """What the clients received."""
    aggregator: Aggregator
    budget: ClientBudget | None
    """What the round's noise is charged to, where clients are to be hidden: the sites draw it."""
    exchange: Exchange
    logs: SiteLogs
    task: ConfigRecord
    """What each stage's instruction begins with."""
    admitted: dict[str, int] = field(default_factory=dict)
    """The clients that have trained and sent their keys: bytes that came from each."""
    folded: dict[str, dict[str, Any]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    received_bytes: int = 0
    sent_bytes: int = 0
    """Of the stages that follow training."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What the round's record says of the sum."""
    lost: dict[str, str] = field(default_factory=dict)
    """The clients that had trained, but did not come through a stage, and why."""
    _asked_to_reveal: bool = False

    def begin(self) -> None:
        """Start the round. Of an attempt before a stop nothing is left: keys are fresh in each."""
        if self.budget:
            self.budget.reserve()
        self.aggregator.begin(self.global_adapter)
        self._spec = records.envelope_of_update(self.envelope, self.recipe, self.cohort[0]).spec
        sent = encode_state(self.global_adapter, self.envelope, compress=self.recipe.wire.compress)
        self._fixed = fixed_point_of(self.recipe)
        self._collector = Collector(
            terms=terms_of(self.recipe),
            context=context_of(self.recipe, self.envelope, payload=sent),
            size=self._spec.size + 1,
        )

    @property
    def open(self) -> tuple[str, ...]:
        """The clients that are not settled yet, in cohort order."""
        settled = self.admitted.keys() | self.refused.keys()
        return tuple(site for site in self.cohort if site not in settled)

    def admit(self, site: str, payload: bytes, metrics: Mapping[str, int | float]) -> None:
        """Take the keys of a client that has trained.

        Raises:
            SecureSumError: they are none, or of another round.
            InspectionError: there are metrics with them.
        """
        if metrics:
            raise InspectionError("In a secure sum nothing but keys answers an instruction.")
        self._collector.take_advertisement(site, read(pb.Advertisement, payload))
        self.admitted[site] = 0
        self._count(site, payload)

    def refuse(self, site: str, reason: str) -> None:
        """Settle a client without an update."""
        if site in self.open:
            self.refused[site] = reason

    def require_quorum(self, path: Path) -> None:
        """Do nothing: each stage says by itself whether enough are left."""

    def median_norm(self) -> None:
        """Return nothing: no single norm is known."""

    def finish(self) -> AdapterUpdate | None:
        """Return the round's update: the mean of those who came through all stages.

        Once shares were asked for there is no second try, since a sum over other members would
        tell the difference: if they do not suffice, there is no update, and nothing changes.

        Raises:
            RunError: too few came so far; nothing was revealed, and the round can be played again.
        """
        try:
            values, weight = self._fixed.decode(self._summed())
        except SecureSumError as error:
            if not (self._asked_to_reveal or self._was_revealed):
                settled = self.refused | self.lost
                reasons = "".join(f"\n  {site}: {reason}" for site, reason in settled.items())
                raise RunError(
                    f"Round {self.envelope.round}: there is no secure sum. {error} Nothing was "
                    f"revealed; resume the run, and the round is played again.{reasons}"
                ) from None
            self.facts["secure_sum"] = {"abandoned": str(error), **self._late()}
            self.refused |= dict.fromkeys(self.admitted, "its sum was abandoned") | self.lost
            return None
        self._note(weight)
        self.refused |= {s: why for s, why in self.lost.items() if s not in self.folded}
        mean = AdapterUpdate(spec=self._spec, values=values, num_examples=weight)
        self.aggregator.add(mean, 1.0)
        return self.aggregator.finish()

    def _summed(self) -> Vector:
        """Play the stages that follow training; return the sum, unmasked."""
        collector = self._collector
        self._stage(
            "share",
            collector.rosters(),
            lambda site, payload: collector.take_shares(site, read(pb.Shares, payload)),
        )
        inboxes = collector.inboxes()
        if self.budget:
            self.budget.charge()
        self._stage("mask", inboxes, collector.take_masked)
        quorum = self.recipe.quorum_of(len(self.cohort))
        survivors = collector.survivors_for(at_least=quorum)
        if collector.terms.signed:
            self._stage(
                "sign",
                survivors,
                lambda site, payload: collector.take_signature(site, read(pb.Signature, payload)),
            )
        unmaskings = collector.unmaskings()
        self._asked_to_reveal = True
        self._stage(
            "reveal",
            unmaskings,
            lambda site, payload: collector.take_revealed(site, read(pb.Revealed, payload)),
        )
        return collector.total()

    def _stage(self, stage: str, asked: Mapping[str, Message], take: _Take) -> None:
        """Ask members for a stage's answer, and take those that are good and come in time."""
        messages: list[Instruction] = []
        for site, what in asked.items():
            payload = what.SerializeToString()
            self.sent_bytes += len(payload)
            messages += self.exchange.instructions(
                [site],
                f"train.{stage}",
                self.task,
                arrays=records.pack(payload),
                tell=self.logs.tell,
            )
        timeout, answered = self.recipe.federation.stage_timeout, set[str]()
        for reply in self.exchange.send(messages, timeout=timeout):
            site = self.exchange.sender(reply)
            answered.add(site)
            try:
                content = content_of(reply)
                self.logs.take(site, content)
                payload = records.unpack(content)
                self._count(site, payload)
                take(site, payload)
            except StorageError:
                raise  # a full disk here is no fault of the client
            except FedloraError as error:
                self._lost(site, stage, str(error))
        for site in asked.keys() - answered:
            self._lost(site, stage, "no answer within federation.stage_timeout")

    def _lost(self, site: str, stage: str, reason: str) -> None:
        """Note that a member was lost; one whose vector is in the sum stays in it."""
        self.lost[site] = f"lost in the secure sum, stage {stage}: {reason}"

    def _note(self, weight: int) -> None:
        """Note who is in the sum, and how exact it is."""
        collector, uniform = self._collector, self.recipe.federation.weighting == "uniform"
        for site in collector.survivors:
            self.folded[site] = {"bytes": self.admitted[site]}
        self.facts["secure_sum"] = {
            "attempt": collector.attempt,
            "members": len(self.admitted),
            "summed": len(collector.survivors),
            **({} if uniform else {"num_examples": weight}),
            "error_bound": self._fixed.error_bound(weight),
            **self._late(),
        }

    def _late(self) -> dict[str, Any]:
        """Return who was lost with a vector in the sum already, and why, if anybody was."""
        late = {site: self.lost[site] for site in self._collector.survivors if site in self.lost}
        return {"late": late} if late else {}

    def _count(self, site: str, payload: bytes) -> None:
        self.received_bytes += len(payload)
        self.admitted[site] += len(payload)

    @property
    def _was_revealed(self) -> bool:
        """Whether so many clients are in a sum of before a stop that there can be no other."""
        reasons = (*self.refused.values(), *self.lost.values())
        left = len(self.cohort) - sum(REVEALED in reason for reason in reasons)
        return left < self._collector.terms.threshold
