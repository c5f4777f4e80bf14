"""The site's Flower app: train and evaluate on the site's own data, behind the gate."""

from collections.abc import Mapping
from functools import cache
from logging import getLogger

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable
from flwr.common.constant import PARTITION_ID_KEY

from fedlora.adapter import AdapterState, AdapterUpdate
from fedlora.errors import BudgetError, InspectionError, RunError, StorageError
from fedlora.gate.inspection import inspect_metrics, inspect_update
from fedlora.recipe import Recipe
from fedlora.runtime import records
from fedlora.runtime.error_feedback import add_lost, keep_lost
from fedlora.runtime.outbox import Outbox
from fedlora.runtime.personal import keep_personal, with_personal
from fedlora.runtime.private_round import evaluated_privately, trained_privately
from fedlora.runtime.site import Site
from fedlora.runtime.site_memory import SiteMemory
from fedlora.wire.codec import (
    Envelope,
    decode_state,
    decode_trained,
    encode_trained,
    encode_update,
)


def gate(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Let a reply to training pass only after inspection, encoded by the gate itself.

    Raises:
        InspectionError: the reply holds something that may not leave the site.
    """
    site, envelope = _open(message, context)
    recipe, memory = site.recipe, SiteMemory(site.name, envelope.run)
    content = call_next(message, context).content
    metrics = inspect_metrics(records.metrics_of(content), unit=recipe.privacy.unit)
    envelope = records.envelope_of_update(envelope, recipe, site.name)
    payload = records.unpack(content)
    trained = decode_trained(payload, envelope, max_bytes=recipe.wire.max_bytes)
    whole = add_lost(trained, recipe, memory, number=envelope.round)
    update = inspect_update(whole, spec=envelope.spec, examples=recipe.examples_of_round)
    codec, compress = recipe.wire.codec, recipe.wire.compress
    payload = encode_update(update, envelope, codec=codec, compress=compress)
    keep_lost(update, recipe, memory, number=envelope.round)
    return Message(records.reply(metrics, payload=payload), reply_to=message)


_REASONS: Mapping[type[Exception], str] = {
    BudgetError: "The site's privacy budget does not allow it.",
    InspectionError: "The site's gate refused the update.",
    StorageError: "The site cannot write to its disk.",
}
_NO_REASON = "The site could not answer; its own log says why."
"""All that a private site says of its errors: their texts may tell of its data."""


def discreet(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Say of an error in a private run only what is on a closed list; the site's log has it all."""
    recipe = _recipe(records.Task.of(message.content).recipe)
    if recipe.privacy.unit == "none":
        return call_next(message, context)
    try:
        return call_next(message, context)
    except Exception as error:  # whatever it is, its text may tell of the data
        getLogger(__name__).exception("This site cannot answer.")
        raise RunError(_REASONS.get(type(error), _NO_REASON)) from None


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


@app.train(mods=[discreet, resend, gate])
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


@app.evaluate(mods=[discreet, resend])
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the received adapter on the site's held-out rows."""
    site, envelope = _open(message, context)
    unit, number = site.recipe.privacy.unit, envelope.round
    received = _received(message, site, envelope, before=number + 1)
    if unit == "example":
        metrics = evaluated_privately(site, received, run=envelope.run, number=number)
    else:
        result = site.evaluate(received)
        metrics = {"eval_loss_sum": result.loss_sum, "eval_tokens": result.tokens}
    return Message(records.reply(inspect_metrics(metrics, unit=unit)), reply_to=message)


def _open(message: Message, context: Context) -> tuple[Site, Envelope]:
    """Return the warm site that this client stands for, and what the exchange is about."""
    task = records.Task.of(message.content)
    recipe = _recipe(task.recipe)
    site = Site.open(recipe, recipe.site_names[int(context.node_config[PARTITION_ID_KEY])])
    return site, Envelope(spec=site.base.spec, run=task.run, round=task.round)


@cache
def _recipe(text: str) -> Recipe:
    return Recipe.from_yaml(text)


def _received(message: Message, site: Site, envelope: Envelope, *, before: int) -> AdapterState:
    """Return the global adapter with the factors that the site keeps to itself, if any."""
    wire = site.recipe.wire
    payload = records.unpack(message.content)
    state = decode_state(payload, envelope, compress=wire.compress, max_bytes=wire.max_bytes)
    return with_personal(state, site.recipe, SiteMemory(site.name, envelope.run), before=before)
