"""What stands between a site's answer and the network, the same in a simulation and at a gate.

Each is a Flower mod: it is given a message and what answers it. From the outside in: errors say
little (``discreet``), the ledger is not older than the aggregator has seen it (``receipted``), in a
secure sum an update waits until it is masked (``held_back``), what was answered is sent again as it
was (``resend``), and nothing leaves without inspection (``gate``).
"""

from collections.abc import Mapping, Sequence
from functools import reduce
from logging import getLogger

from flwr.app import Context, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable, Mod

from fedlora.errors import (
    BudgetError,
    DivergedError,
    EvidenceError,
    FedloraError,
    InspectionError,
    NotYetError,
    PeerError,
    PolicyError,
    RunError,
    SecureSumError,
    StorageError,
    SummedError,
)
from fedlora.gate.inspection import Leave, inspect_public_metrics
from fedlora.gate.policy import Policy
from fedlora.privacy.ledger import DEFAULT_ACCOUNT, Ledger, Purpose
from fedlora.recipe import Recipe
from fedlora.runtime import records
from fedlora.runtime.secure_terms import REVEALED
from fedlora.runtime.site.asked import Asked
from fedlora.runtime.site.budget import site_ledger
from fedlora.runtime.site.error_feedback import add_lost, keep_lost
from fedlora.runtime.site.memory import SiteMemory
from fedlora.runtime.site.outbox import Outbox
from fedlora.runtime.site.secure_sum import held_back
from fedlora.wire.codec import Envelope, decode_trained, encode_update


def gate(policy: Policy | None = None) -> Mod:
    """Return what lets a reply pass only after inspection, charged, and encoded by the gate itself.

    Args:
        policy: the operator's; none in a simulation.

    Raises:
        InspectionError: (the mod) the reply was not charged, or holds something that may not leave
            the site.
        PolicyError: (the mod) the policy does not allow it.
    """

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        asked = Asked.of(message, context)
        recipe, envelope, trained = asked.recipe, asked.envelope, asked.purpose == "train"
        purpose: Purpose = "train" if trained else "evaluate"
        require_planned(recipe, purpose, envelope.round)
        unit = recipe.privacy.unit
        ledger = site_ledger(asked.site) if unit == "example" else None
        before = _charges(ledger, envelope, purpose)
        content = call_next(message, context).content
        charges = _charges(ledger, envelope, purpose) - before
        if not trained and envelope.round not in recipe.federation.evaluated_rounds:
            metrics = inspect_public_metrics(records.metrics_of(content), policy=policy)
            return Message(records.reply(metrics), reply_to=message)
        leave = Leave(unit=unit, purpose=purpose, charges=charges, policy=policy)
        metrics = leave.inspect_metrics(records.metrics_of(content))
        payload = _encoded(content, leave, asked=asked) if trained else None
        return Message(records.reply(metrics, payload=payload), reply_to=message)

    return mod


def require_planned(recipe: Recipe, purpose: Purpose, number: int) -> None:
    """Do nothing if the recipe asks for such an answer in that round: nobody else may.

    Raises:
        InspectionError: it does not.
    """
    trained = range(1, recipe.federation.rounds + 1)
    if number not in (trained if purpose == "train" else recipe.asked_rounds):
        raise InspectionError(
            f"The aggregator asks the site to {purpose} in round {number}, which the recipe does "
            "not plan. Nothing was computed."
        )


def _charges(ledger: Ledger | None, envelope: Envelope, purpose: Purpose) -> int:
    """Return how often the round was charged at the site, where rounds are."""
    if ledger is None:
        return 0
    run, number = envelope.run, envelope.round
    return ledger.charges_of(DEFAULT_ACCOUNT, run, purpose=purpose, number=number)


def _encoded(content: RecordDict, leave: Leave, *, asked: Asked) -> bytes:
    """Return the update of a reply as it may leave the site."""
    recipe, memory = asked.recipe, SiteMemory(asked.site, asked.envelope.run)
    envelope = records.envelope_of_update(asked.envelope, recipe, asked.site)
    payload = records.unpack(content)
    trained = decode_trained(payload, envelope, max_bytes=recipe.wire.max_bytes)
    whole = add_lost(trained, recipe, memory, number=envelope.round)
    update = leave.inspect_update(whole, spec=envelope.spec, examples=recipe.examples_of_round)
    codec, compress = recipe.wire.codec, recipe.wire.compress
    payload = encode_update(update, envelope, codec=codec, compress=compress)
    keep_lost(update, recipe, memory, number=envelope.round)
    return payload


_REASONS: Mapping[type[Exception], str] = {
    NotYetError: "The site does not answer yet: its operator, or its hours, do not allow it now.",
    PolicyError: "The site's policy does not allow it.",
    PeerError: "The site has no pin of another in the cohort, or another: its log says of which.",
    EvidenceError: "The site's evidence log is not whole.",
    BudgetError: "The site's privacy budget does not allow it.",
    InspectionError: "The site's gate refused the answer.",
    StorageError: "The site cannot write to its disk.",
    DivergedError: "The site's training diverged: lower learning_rate.",
    SecureSumError: "The site left the secure sum: what came was not what it expects.",
    SummedError: REVEALED,
}
_NO_REASON = "The site could not answer; its own log says why."
SAID = frozenset({*_REASONS.values(), _NO_REASON})
"""All that such a site says of its errors: their texts may tell of its data."""


def discreet(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Say of an error only what is on a closed list; the site's own log has it all.

    A simulation without privacy, whose user is at both ends, says everything.
    """
    asked = Asked.of(message, context)
    if asked.recipe.privacy.unit == "none" and not asked.deployed:
        return call_next(message, context)
    try:
        return call_next(message, context)
    except FedloraError as error:
        getLogger(__name__).warning("%s: %s", asked.site, error)
        raise RunError(said_of(error)) from None
    except Exception as error:  # whatever it is, its text may tell of the data
        getLogger(__name__).exception("%s cannot answer.", asked.site)
        raise RunError(said_of(error)) from None


def said_of(error: Exception) -> str:
    """Return all that a site says of an error."""
    return _REASONS.get(type(error), _NO_REASON)


def receipted(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Answer only if the ledger is not older than the aggregator has seen it; say how far it is.

    An answer that was sent before says it anew: the head is no part of what the outbox keeps.

    Raises:
        BudgetError: the ledger is older, or another.
        WireError: the instruction does not say what the aggregator has seen.
    """
    asked = Asked.of(message, context)
    if asked.recipe.privacy.unit != "example":
        return call_next(message, context)
    ledger = site_ledger(asked.site)
    ledger.require_not_older(records.head_of(message.content))
    reply = call_next(message, context)
    records.add_head(reply.content, ledger.head())
    return reply


def resend(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Answer as before what was answered before; keep what is answered anew.

    Fresh noise would be a new charge, a deployed site would do its work twice, and a secure sum is
    of what is kept here. A simulation without privacy has nothing to lose by it.
    """
    asked = Asked.of(message, context)
    privacy = asked.recipe.privacy
    if privacy.unit != "example" and not privacy.secure_aggregation and not asked.deployed:
        return call_next(message, context)
    outbox = Outbox(SiteMemory(asked.site, asked.envelope.run))
    if known := outbox.answer(message):
        return known
    reply = call_next(message, context)
    outbox.keep(message, reply)
    return reply


def guarded(answer: ClientAppCallable, mods: Sequence[Mod]) -> ClientAppCallable:
    """Return ``answer`` behind mods, the first of them outermost."""

    def behind(inner: ClientAppCallable, mod: Mod) -> ClientAppCallable:
        return lambda message, context: mod(message, context, inner)

    return reduce(behind, reversed(mods), answer)


GUARDS: list[Mod] = [discreet, receipted, held_back(), resend, gate()]
"""Those of a simulated site, from the outside in."""
