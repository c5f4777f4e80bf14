"""The site's Flower app: train and evaluate on the site's own data, behind the gate."""

from collections.abc import Mapping
from functools import cache
from logging import getLogger

from flwr.app import Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable
from flwr.common.constant import PARTITION_ID_KEY

from fedlora.adapter import AdapterState, AdapterUpdate
from fedlora.errors import BudgetError, FedloraError, InspectionError, RunError, StorageError
from fedlora.gate.inspection import Leave
from fedlora.privacy.ledger import DEFAULT_ACCOUNT, Ledger, Purpose
from fedlora.recipe import Recipe
from fedlora.runtime import records
from fedlora.runtime.site.budget import site_ledger
from fedlora.runtime.site.error_feedback import add_lost, keep_lost
from fedlora.runtime.site.memory import SiteMemory
from fedlora.runtime.site.outbox import Outbox
from fedlora.runtime.site.personal import keep_personal, with_personal
from fedlora.runtime.site.private_round import evaluated_privately, trained_privately
from fedlora.runtime.site.site import Site
from fedlora.wire.codec import (
    Envelope,
    decode_state,
    decode_trained,
    encode_trained,
    encode_update,
)


def gate(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Let a reply pass only after inspection, charged, and its update encoded by the gate itself.

    Raises:
        InspectionError: the reply was not charged, or holds something that may not leave the site.
    """
    site, envelope = _open(message, context)
    trained = message.metadata.message_type.partition(".")[0] == MessageType.TRAIN
    purpose: Purpose = "train" if trained else "evaluate"
    _require_planned(site.recipe, purpose, envelope.round)
    unit = site.recipe.privacy.unit
    ledger = site_ledger(site.name) if unit == "example" else None
    before = _charges(ledger, envelope, purpose)
    content = call_next(message, context).content
    charges = _charges(ledger, envelope, purpose) - before
    leave = Leave(unit=unit, purpose=purpose, charges=charges)
    metrics = leave.inspect_metrics(records.metrics_of(content))
    payload = _encoded(content, leave, site=site, envelope=envelope) if trained else None
    return Message(records.reply(metrics, payload=payload), reply_to=message)


def _require_planned(recipe: Recipe, purpose: Purpose, number: int) -> None:
    """Do nothing if the recipe asks for such an answer in that round: nobody else may."""
    federation = recipe.federation
    trained = range(1, federation.rounds + 1)
    if number not in (trained if purpose == "train" else federation.evaluated_rounds):
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


def _encoded(content: RecordDict, leave: Leave, *, site: Site, envelope: Envelope) -> bytes:
    """Return the update of a reply as it may leave the site."""
    recipe, memory = site.recipe, SiteMemory(site.name, envelope.run)
    envelope = records.envelope_of_update(envelope, recipe, site.name)
    payload = records.unpack(content)
    trained = decode_trained(payload, envelope, max_bytes=recipe.wire.max_bytes)
    whole = add_lost(trained, recipe, memory, number=envelope.round)
    update = leave.inspect_update(whole, spec=envelope.spec, examples=recipe.examples_of_round)
    codec, compress = recipe.wire.codec, recipe.wire.compress
    payload = encode_update(update, envelope, codec=codec, compress=compress)
    keep_lost(update, recipe, memory, number=envelope.round)
    return payload


_REASONS: Mapping[type[Exception], str] = {
    BudgetError: "The site's privacy budget does not allow it.",
    InspectionError: "The site's gate refused the answer.",
    StorageError: "The site cannot write to its disk.",
}
_NO_REASON = "The site could not answer; its own log says why."
"""All that a private site says of its errors: their texts may tell of its data."""


def discreet(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Say of an error in a private run only what is on a closed list; the site's log has it all."""
    recipe = _recipe(records.Task.of(message.content).recipe)
    if recipe.privacy.unit == "none":
        return call_next(message, context)
    name = _site_name(recipe, context)
    try:
        return call_next(message, context)
    except FedloraError as error:
        getLogger(__name__).warning("%s: %s", name, error)
        raise RunError(_REASONS.get(type(error), _NO_REASON)) from None
    except Exception:  # whatever it is, its text may tell of the data
        getLogger(__name__).exception("%s cannot answer.", name)
        raise RunError(_NO_REASON) from None


def receipted(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Answer only if the ledger is not older than the aggregator has seen it; say how far it is.

    An answer that was sent before says it anew: the head is no part of what the outbox keeps.

    Raises:
        BudgetError: the ledger is older, or another.
        WireError: the instruction does not say what the aggregator has seen.
    """
    site, _ = _open(message, context)
    if site.recipe.privacy.unit != "example":
        return call_next(message, context)
    ledger = site_ledger(site.name)
    ledger.require_not_older(records.head_of(message.content))
    reply = call_next(message, context)
    records.add_head(reply.content, ledger.head())
    return reply


def resend(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Answer as before what a private site has answered before; keep what it answers anew."""
    site, envelope = _open(message, context)
    if site.recipe.privacy.unit != "example":
        return call_next(message, context)
    outbox = Outbox(SiteMemory(site.name, envelope.run))
    if known := outbox.answer(message):
        return known
    reply = call_next(message, context)
    outbox.keep(message, reply)
    return reply


app = ClientApp()


@app.query(mods=[discreet])
def introduce(message: Message, context: Context) -> Message:
    """Say which site this is."""
    site, _ = _open(message, context)
    return Message(records.introduction(site.name), reply_to=message)


@app.train(mods=[discreet, receipted, resend, gate])
def train(message: Message, context: Context) -> Message:
    """Train the received adapter for a round and reply with the increment."""
    site, envelope = _open(message, context)
    recipe, number = site.recipe, envelope.round
    received = _received(message, site, envelope, before=number)
    examples, metrics = recipe.examples_of_round[-1], dict[str, float]()
    if recipe.privacy.unit == "example":
        state = trained_privately(site, received, run=envelope.run, number=number)
    else:
        result = site.train_round(received, number=number)
        state = result.state
        if recipe.privacy.unit == "none":
            examples = result.examples
            metrics = {"train_loss": sum(result.losses) / len(result.losses)}
    keep_personal(state, recipe, SiteMemory(site.name, envelope.run), number=number)
    envelope = records.envelope_of_update(envelope, recipe, site.name)
    increment = state.part(envelope.spec).minus(received.part(envelope.spec))
    update = AdapterUpdate(spec=envelope.spec, values=increment, num_examples=examples)
    payload = encode_trained(update, envelope)
    return Message(records.reply(metrics, payload=payload), reply_to=message)


@app.evaluate(mods=[discreet, receipted, resend, gate])
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the received adapter on the site's held-out rows."""
    site, envelope = _open(message, context)
    number = envelope.round
    received = _received(message, site, envelope, before=number + 1)
    if site.recipe.privacy.unit == "example":
        metrics = evaluated_privately(site, received, run=envelope.run, number=number)
    else:
        result = site.evaluate(received)
        metrics = {"eval_loss_sum": result.loss_sum, "eval_tokens": result.tokens}
    return Message(records.reply(metrics), reply_to=message)


def _open(message: Message, context: Context) -> tuple[Site, Envelope]:
    """Return the warm site that this client stands for, and what the exchange is about."""
    task = records.Task.of(message.content)
    recipe = _recipe(task.recipe)
    site = Site.open(recipe, _site_name(recipe, context))
    return site, Envelope(spec=site.base.spec, run=task.run, round=task.round)


def _site_name(recipe: Recipe, context: Context) -> str:
    return recipe.site_names[int(context.node_config[PARTITION_ID_KEY])]


@cache
def _recipe(text: str) -> Recipe:
    return Recipe.from_yaml(text)


def _received(message: Message, site: Site, envelope: Envelope, *, before: int) -> AdapterState:
    """Return the global adapter with the factors that the site keeps to itself, if any."""
    wire = site.recipe.wire
    payload = records.unpack(message.content)
    state = decode_state(payload, envelope, compress=wire.compress, max_bytes=wire.max_bytes)
    return with_personal(state, site.recipe, SiteMemory(site.name, envelope.run), before=before)
