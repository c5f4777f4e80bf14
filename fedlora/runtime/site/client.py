"""The site's Flower app: train and evaluate on the site's own data, behind the gate."""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedlora.adapter import AdapterState, AdapterUpdate
from fedlora.runtime import records
from fedlora.runtime.metrics import eval_metrics
from fedlora.runtime.secure_terms import STAGES
from fedlora.runtime.site.asked import Asked
from fedlora.runtime.site.drift import SiteDrift
from fedlora.runtime.site.memory import SiteMemory
from fedlora.runtime.site.mods import GUARDS, discreet, receipted
from fedlora.runtime.site.personal import keep_personal, with_personal
from fedlora.runtime.site.private_round import evaluated_privately, trained_privately
from fedlora.runtime.site.secure_sum import answer_stage
from fedlora.runtime.site.site import Site
from fedlora.wire.codec import Envelope, decode_state, encode_trained


def introduce(message: Message, context: Context) -> Message:
    """Say which site this is, once its data and base are ready."""
    site, _ = _opened(message, context)
    return Message(records.introduction(site.name), reply_to=message)


def train(message: Message, context: Context) -> Message:
    """Train the received adapter for a round and reply with the increment."""
    site, envelope = _opened(message, context)
    recipe, number = site.recipe, envelope.round
    received = _received(message, site, envelope, before=number)
    memory = SiteMemory(site.name, envelope.run)
    drift = SiteDrift(recipe=recipe, memory=memory, number=number, received=received)
    examples, metrics = recipe.examples_of_round[-1], dict[str, float]()
    if recipe.privacy.unit == "example":
        state = trained_privately(
            site, received, run=envelope.run, number=number, correction=drift.correction
        )
    else:
        result = site.train_round(received, number=number, correction=drift.correction)
        state = result.state
        if recipe.privacy.unit == "none":
            examples = result.examples
        if recipe.privacy.unit == "none" and not recipe.privacy.secure_aggregation:
            metrics = {"train_loss": sum(result.losses) / len(result.losses)}
    keep_personal(state, recipe, memory, number=number)
    drift.keep(state)
    envelope = records.envelope_of_update(envelope, recipe, site.name)
    increment = state.part(envelope.spec).minus(received.part(envelope.spec))
    update = AdapterUpdate(spec=envelope.spec, values=increment, num_examples=examples)
    payload = encode_trained(update, envelope)
    return Message(records.reply(metrics, payload=payload), reply_to=message)


def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the received adapter on the site's held-out rows, the public text, or both.

    Before the first round the base alone is evaluated.
    """
    site, envelope = _opened(message, context)
    number = envelope.round
    received = _received(message, site, envelope, before=number + 1)
    state = received if number else None  # round 0 measures the base, whatever training begins with
    recipe, metrics = site.recipe, dict[str, int | float]()
    if number in recipe.federation.evaluated_rounds:
        metrics |= _held_out(site, state, run=envelope.run, number=number)
    if number in recipe.publish.text_rounds(recipe.federation) and site.public_rows:
        result = site.evaluate_public(state)
        metrics |= {"public_loss_sum": result.loss_sum, "public_tokens": result.tokens}
    return Message(records.reply(metrics), reply_to=message)


def _held_out(
    site: Site, state: AdapterState | None, *, run: str, number: int
) -> dict[str, int | float]:
    if site.recipe.privacy.unit == "example":
        return evaluated_privately(site, state, run=run, number=number)
    return eval_metrics(site.evaluate(state))


def _opened(message: Message, context: Context) -> tuple[Site, Envelope]:
    """Return the warm site that this client stands for, and what the exchange is about."""
    asked = Asked.of(message, context)
    return Site.open(asked.recipe, asked.site), asked.envelope


def _received(message: Message, site: Site, envelope: Envelope, *, before: int) -> AdapterState:
    """Return the global adapter with the factors that the site keeps to itself, if any."""
    wire = site.recipe.wire
    payload = records.unpack(message.content)
    state = decode_state(payload, envelope, compress=wire.compress, max_bytes=wire.max_bytes)
    return with_personal(state, site.recipe, SiteMemory(site.name, envelope.run), before=before)


app = ClientApp()
app.query(mods=[discreet])(introduce)
app.train(mods=GUARDS)(train)
app.evaluate(mods=GUARDS)(evaluate)
for stage in STAGES:
    app.train(stage, mods=[discreet, receipted])(answer_stage)
