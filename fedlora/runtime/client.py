"""The site's Flower app: train and evaluate on the site's own data, behind the gate."""

from functools import cache

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable
from flwr.common.constant import PARTITION_ID_KEY

from fedlora.adapter import AdapterState, AdapterUpdate
from fedlora.gate.inspection import inspect_metrics, inspect_update
from fedlora.recipe import Recipe
from fedlora.runtime import records
from fedlora.runtime.error_feedback import add_lost, keep_lost
from fedlora.runtime.personal import keep_personal, with_personal
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


app = ClientApp()


@app.query()
def introduce(message: Message, context: Context) -> Message:
    """Say which site this is."""
    site, _ = _open(message, context)
    return Message(records.introduction(site.name), reply_to=message)


@app.train(mods=[gate])
def train(message: Message, context: Context) -> Message:
    """Train the received adapter for a round and reply with the increment."""
    site, envelope = _open(message, context)
    received = _received(message, site, envelope, before=envelope.round)
    result = site.train_round(received, number=envelope.round)
    memory = SiteMemory(site.name, envelope.run)
    keep_personal(result.state, site.recipe, memory, number=envelope.round)
    envelope = records.envelope_of_update(envelope, site.recipe, site.name)
    increment = result.state.part(envelope.spec).minus(received.part(envelope.spec))
    update = AdapterUpdate(spec=envelope.spec, values=increment, num_examples=result.examples)
    metrics = {"train_loss": sum(result.losses) / len(result.losses)}
    payload = encode_trained(update, envelope)
    return Message(records.reply(metrics, payload=payload), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the received adapter on the site's held-out rows."""
    site, envelope = _open(message, context)
    received = _received(message, site, envelope, before=envelope.round + 1)
    result = site.evaluate(received)
    metrics = {"eval_loss_sum": result.loss_sum, "eval_tokens": result.tokens}
    return Message(
        records.reply(inspect_metrics(metrics, unit=site.recipe.privacy.unit)), reply_to=message
    )


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
