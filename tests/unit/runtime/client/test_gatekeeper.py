"""What a deployed site's gate does with one instruction: each of its guarantees."""

import hashlib
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
import torch
from flwr.app import ConfigRecord, Error, Message
from flwr.common.constant import ErrorCode

from fedlora.adapter import AdapterUpdate, InspectedUpdate
from fedlora.errors import DataError, EvidenceError
from fedlora.gate.evidence.entries import Decided, Received, Refused, Released
from fedlora.lock import BaseDigests
from fedlora.recipe import Recipe
from fedlora.runtime import records
from fedlora.runtime.lock import locked, spec_of
from fedlora.runtime.site import site as resident
from fedlora.runtime.site.mods import SAID
from fedlora.wire.codec import Envelope, encode_trained, encode_update
from simulations.campaigns.gated_site import SITE, gated
from simulations.campaigns.hostile_instructions import scaled
from tests.strategies import make_spec

SECRET = "Mrs. Miller, born 1950"
SPEC = make_spec(rank=8, alpha=16.0)
RECIPE = locked(
    Recipe.from_yaml(
        "privacy: {unit: none}\n"
        "datasets: [{path: a, site: north}, {path: a, site: south}]\n"
        "federation: {rounds: 3, local_steps: 2}\n"
    ),
    SPEC,
    BaseDigests(weights_digest="0" * 64, tokenizer_digest="0" * 64),
)
LATER = "-".join(f"{datetime.now().astimezone() + timedelta(hours=n):%H:%M}" for n in (2, 4))
POLICY = {
    "bounds": {"base_models": [{"digest": SPEC.base_digest}], "privacy": {"unit": "none"}},
    "approval": "none",
}


def update_of(recipe: Recipe, envelope: Envelope) -> AdapterUpdate:
    """Return what the trainer of these tests answers with."""
    values = torch.linspace(-1, 1, envelope.spec.size)
    return AdapterUpdate(
        spec=envelope.spec, values=values, num_examples=recipe.examples_of_round[-1]
    )


def envelope_of(recipe: Recipe, *, run: str = "run", number: int = 1) -> Envelope:
    whole = Envelope(spec=spec_of(recipe), run=run, round=number)
    return records.envelope_of_update(whole, recipe, SITE)


def work(message: Message, recipe: Recipe, site: str) -> Message:
    """Answer without a base or data."""
    task = records.Task.of(message.content)
    if message.metadata.message_type == "evaluate":
        content = records.reply({"eval_loss_sum": 3.0, "eval_tokens": 2})
    else:
        envelope = envelope_of(recipe, run=task.run, number=task.round)
        payload = encode_trained(update_of(recipe, envelope), envelope)
        content = records.reply({"train_loss": 1.0}, payload=payload)
    return Message(content, reply_to=message)


def saying(**metrics: object):
    """Return a trainer's work that answers with other metrics."""

    def answer(message: Message, recipe: Recipe, site: str) -> Message:
        payload = records.unpack(work(message, recipe, site).content)
        return Message(records.reply(metrics, payload=payload), reply_to=message)

    return answer


def failing(error: Exception):
    """Return a trainer's work that fails."""

    def answer(message: Message, recipe: Recipe, site: str) -> Message:
        raise error

    return answer


@pytest.fixture(name="at")
def _at(tmp_path):
    """Return what makes a site with a policy of bounds, and other keys of it."""
    return lambda work=work, **policy: gated(tmp_path / "site", RECIPE, POLICY | policy, work=work)


def logged(site) -> list:
    return [each.entry for each in site.gate.evidence.entries()]


def reason(reply: Message) -> str:
    assert reply.has_error()
    return reply.error.reason


def test_an_instruction_that_is_allowed_is_answered_and_on_record(at):
    """It came, was allowed, and left: in this order, with one message's identifier."""
    with at() as site:
        message = site.instruction()
        reply = site.gate.answer(message)
        received, decided, released = logged(site)
    assert isinstance(received, Received)
    assert isinstance(decided, Decided)
    assert isinstance(released, Released)
    assert decided.allowed
    assert {e.message for e in (received, decided, released)} == {message.metadata.message_id}
    assert records.signed_head_of(reply.content).count == 3


def test_what_is_on_record_is_what_leaves(at):
    """Digest and size of the very bytes; the log is ahead of the answer, which brings its head."""
    with at() as site:
        reply = site.gate.answer(site.instruction())
        released = logged(site)[-1]
        head = site.gate.evidence.head()
    payload = records.unpack(reply.content)
    assert released.payload == hashlib.sha256(payload).hexdigest()
    assert released.size == len(payload)
    assert released.content == records.digests_of(reply.content).content
    assert released.metrics == ("train_loss",)
    assert records.signed_head_of(reply.content).hash == head.hash


def test_the_update_that_leaves_is_encoded_by_the_gate(at):
    """In the recipe's codec, from the values that the trainer gave: none of its bytes leave."""
    with at() as site:
        reply = site.gate.answer(site.instruction())
    envelope = envelope_of(RECIPE)
    update = update_of(RECIPE, envelope)
    inspected = InspectedUpdate(
        spec=update.spec, values=update.values, num_examples=update.num_examples
    )
    expected = encode_update(inspected, envelope, codec="int8", compress=False)
    assert records.unpack(reply.content) == expected


@pytest.mark.parametrize("policy", [{"bounds": None}, {"hours": LATER}, {"approval": "required"}])
def test_what_the_policy_does_not_allow_does_not_reach_the_trainer(at, policy):
    """The log says that it came, why it was not allowed, and what was said instead."""
    with at(**policy) as site:
        said = reason(site.gate.answer(site.instruction()))
        assert site.trainer.recipes == []
        decided, refused = logged(site)[-2:]
    assert not decided.allowed
    assert decided.reasons
    assert refused.said == said
    assert said in SAID


@pytest.mark.parametrize(
    ("policy", "code"),
    [
        ({"approval": "required"}, ErrorCode.MOD_FAILED_PRECONDITION),
        ({"bounds": None}, ErrorCode.CLIENT_APP_RAISED_EXCEPTION),
    ],
)
def test_what_may_be_answered_later_is_told_from_what_may_not(at, policy, code):
    """The aggregator asks again where a person has not said yes yet."""
    with at(**policy) as site:
        assert site.gate.answer(site.instruction()).error.code == code


@pytest.mark.parametrize("error", [DataError(SECRET), ValueError(SECRET), MemoryError(SECRET)])
def test_an_error_never_tells_of_the_data(at, error):
    """Neither what leaves nor the log has its text, whoever raised it; the cause has a name."""
    with at(failing(error)) as site:
        said = reason(site.gate.answer(site.instruction()))
        refused = logged(site)[-1]
        kept = [
            path.read_bytes() for path in site.gate.evidence.folder.rglob("*") if path.is_file()
        ]
    assert said in SAID
    assert (refused.said, refused.cause) == (said, type(error).__name__)
    assert not any(SECRET.encode() in content for content in kept)


@pytest.mark.parametrize(
    "metrics", [{"patient": 1.0}, {"train_loss": 7}, {"train_loss": 1e6}, {"train_loss": -1.0}]
)
def test_a_metric_that_is_not_as_named_does_not_leave(at, metrics):
    """Name, type and range; the update does not leave without it either."""
    with at(saying(**metrics)) as site:
        assert reason(site.gate.answer(site.instruction())) in SAID
        assert isinstance(logged(site)[-1], Refused)


def test_an_update_above_the_norm_does_not_leave(at):
    """The operator's bound holds for what was trained as it should be, too."""
    with at(update_norm=0.1) as site:
        assert "policy" in reason(site.gate.answer(site.instruction()))


def test_bytes_are_counted_over_a_round_and_a_day(at):
    """What left before counts, also in another run of the day."""
    with at() as site:
        size = len(records.unpack(site.gate.answer(site.instruction()).content))
    with at(bytes={"per_day": 2 * size}) as site:
        assert site.gate.answer(site.instruction(run="two")).has_content()
        assert "policy" in reason(site.gate.answer(site.instruction(run="three")))
    with at(bytes={"per_round": 2 * size - 1}) as site:
        assert "policy" in reason(site.gate.answer(site.instruction(run="two")))


def test_what_was_answered_leaves_again_byte_by_byte(at):
    """Without the trainer, after the gate's restart too; the log tells of it again."""
    with at() as site:
        first = site.gate.answer(site.instruction())
    with at() as site:
        for text in (None, f"# again\n{RECIPE.to_yaml()}"):
            again = site.gate.answer(site.instruction(text=text))
            assert records.unpack(again.content) == records.unpack(first.content)
            assert records.metrics_of(again.content) == records.metrics_of(first.content)
        assert site.trainer.recipes == []
        released = [entry.payload for entry in logged(site) if isinstance(entry, Released)]
    assert len(released) == 3
    assert len(set(released)) == 1


@pytest.mark.parametrize("numbers", [range(1, 5), range(1, 10, 4)], ids=["all", "every fourth"])
def test_nothing_is_worked_on_twice_however_old_the_question(tmp_path, numbers):
    """Fresh noise would be charged anew: what is not answered as before is refused as too old.

    Also to a site that takes part now and then.
    """
    longer = RECIPE.federation.model_copy(update={"rounds": 9, "evaluate_every": 1})
    recipe = RECIPE.model_copy(update={"federation": longer})
    with gated(tmp_path / "site", recipe, POLICY, work=work) as site:
        initial = site.initial(recipe)

        def ask(kind: str, number: int) -> None:
            rounds = number - (kind == "train")
            values = initial.values + 1e-3 * rounds if rounds else initial.values
            state = replace(initial, values=values)
            site.gate.answer(site.instruction(kind, number=number, state=state))

        past: list[tuple[str, int]] = []
        for number in numbers:
            for question in (("train", number), ("evaluate", number)):
                for each in (question, *past):
                    ask(*each)
                past.append(question)
                assert len(site.trainer.recipes) == len(past)


@pytest.mark.parametrize(("kind", "number"), [("train", 0), ("train", 4), ("evaluate", 9)])
def test_a_round_that_is_not_planned_leaves_no_trace_in_the_chain(at, kind, number):
    """An adapter for it must not become what later ones are held against."""
    with at() as site:
        state = replace(site.initial(), values=torch.ones(SPEC.size))
        assert reason(site.gate.answer(site.instruction(kind, number=number, state=state))) in SAID
        assert site.gate.chain.rounds() == {}
        assert site.gate.answer(site.instruction()).has_content()


def test_a_fork_and_a_hundredfold_are_refused_and_the_run_goes_on(at):
    """What was refused does not count as seen."""
    with at() as site:
        state = site.initial()
        for tensor, values in state.factors():
            if tensor.factor == "B":
                values.fill_(1e-2)
        assert site.gate.answer(site.instruction()).has_content()
        far = site.instruction(number=2, state=scaled(state, 10_000))
        assert site.gate.answer(far).has_error()
        assert site.gate.answer(site.instruction(number=2, state=state)).has_content()
        fork = site.instruction(number=2, state=scaled(state, 1.1))
        assert site.gate.answer(fork).has_error()
        assert len(site.trainer.recipes) == 2


def test_a_recipe_without_a_lock_loads_no_base(at, tmp_path):
    """The gate, with keys and network, neither looks for nor downloads what the recipe names."""
    before = dict(resident._bases)
    with at() as site:
        for base in ("embedded", "evil/model", str(tmp_path)):
            changes = {"lock": None, "base_model": base}
            text = RECIPE.model_copy(update=changes).to_yaml()
            assert reason(site.gate.answer(site.instruction(text=text))) in SAID
            assert logged(site)[-1].cause == "RecipeError"
    assert resident._bases == before


def test_the_trainer_is_given_the_operators_paths(at, tmp_path):
    """Whatever the recipe calls data."""
    with at() as site:
        assert site.gate.answer(site.instruction()).has_content()
        [played] = site.trainer.recipes
    paths = {dataset.site: dataset.path for dataset in Recipe.from_yaml(played).datasets}
    assert paths == {"north": str(tmp_path / "site" / "rows.jsonl"), "south": "a"}


def test_answers_and_errors_leave_on_schedule_alone(at):
    """When an error leaves would otherwise tell how far the work had come."""
    waits = []
    with at(release_every=600) as site:
        gate = replace(site.gate, sleep=waits.append)
        assert gate.answer(site.instruction()).has_content()
        assert gate.answer(site.instruction(number=7)).has_error()
    assert len(waits) == 2
    assert all(0 <= wait <= 600 for wait in waits)


def test_reasons_on_record_are_short(at):
    """An aggregator that quotes a megabyte does not fill the log with it."""
    with at() as site:
        noise = ConfigRecord({"x" * 10_000: 1})
        message = site.instruction(change=lambda content: content.update({"y" * 10_000: noise}))
        assert site.gate.answer(message).has_error()
        decided = logged(site)[-2]
    assert sum(map(len, decided.reasons)) < 1000


def test_an_error_in_place_of_an_instruction_is_refused_and_on_record(at):
    """Also what has no content is logged before anything is said."""
    with at() as site:
        message = Message(Error(0, "x"), reply_to=site.instruction())
        assert reason(site.gate.answer(message)) in SAID
        received, refused = logged(site)
    assert isinstance(received, Received)
    assert isinstance(refused, Refused)


def test_without_a_whole_log_nothing_leaves(at):
    """Neither answer nor error: the gate ends."""
    with at() as site:
        assert site.gate.answer(site.instruction()).has_content()
        (site.gate.evidence.folder / "log.sqlite.head").write_text(f"999 {'0' * 64}\n")
        with pytest.raises(EvidenceError, match="older database"):
            site.gate.answer(site.instruction(number=2))
