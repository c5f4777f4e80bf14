"""One bad client never ends a run: it is refused by name, and the others are folded."""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedlora.adapter import AdapterSpec, AdapterUpdate, InspectedUpdate
from fedlora.errors import DataError, RunError
from fedlora.methods import METHODS
from fedlora.runtime.aggregator.server import serve
from fedlora.runtime.carriers.in_process import InProcessGrid
from fedlora.runtime.plan import plan
from fedlora.runtime.run_folder import RunFolder
from fedlora.runtime.simulation import sites_in, start
from fedlora.runtime.site.client import app
from fedlora.runtime.site.memory import FOLDER
from fedlora.runtime.site.objectives.sft import Sft
from fedlora.runtime.site.site import Site
from fedlora.wire.codec import Envelope, decode_update, encode_trained, encode_update

BAD = "south"
AS_IT_IS = {"codec": "fp32", "compress": False}
SHORT = (
    "federation.quorum=1",
    "federation.rounds=2",
    "federation.evaluate_every=0",
    "wire.codec=fp32",
)


class HostileGrid(InProcessGrid):
    """Carries messages as usual, but the second client's replies to training are altered."""

    def __init__(
        self, app: ClientApp, *, clients: int, alter: Callable[[Message], Message]
    ) -> None:
        super().__init__(app, clients=clients)
        self.alter = alter

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        for reply in super().pull_messages(message_ids):
            trained = reply.metadata.message_type == "train" and reply.metadata.src_node_id == 2
            yield self.alter(reply) if trained else reply


def with_payload(reply: Message, payload: bytes, *, stype: str = "fedlora.wire.v1") -> Message:
    array = Array(dtype="uint8", shape=(len(payload),), stype=stype, data=payload)
    reply.content["adapter"] = ArrayRecord({"adapter": array})
    return reply


def payload_of(reply: Message) -> bytes:
    return reply.content.array_records["adapter"]["adapter"].data


def sent(run: RunFolder, number: int) -> AdapterSpec:
    """Return what every client sends in a round."""
    return run.spec().part(run.recipe().federation.facts.sent(number))


def decoded(reply: Message, envelope: Envelope) -> AdapterUpdate:
    return decode_update(payload_of(reply), envelope, **AS_IT_IS, max_bytes=2**31)


def altered_update(run: RunFolder, change: Callable[[AdapterUpdate], AdapterUpdate], /, **envelope):
    """Return an alteration that decodes the update, changes it, and encodes it again."""

    def alter(reply: Message) -> Message:
        number = int(reply.metadata.group_id)
        honest = Envelope(spec=sent(run, number), run=run.name, round=number)
        update = change(decoded(reply, honest))
        forged = replace(honest, **envelope)
        inspected = InspectedUpdate(
            spec=update.spec, values=update.values, num_examples=update.num_examples
        )
        return with_payload(reply, encode_update(inspected, forged, **AS_IT_IS))

    return alter


def scaled(factor: float) -> Callable[[AdapterUpdate], AdapterUpdate]:
    return lambda u: AdapterUpdate(
        spec=u.spec, values=u.values * factor, num_examples=u.num_examples
    )


def claiming(examples: int) -> Callable[[AdapterUpdate], AdapterUpdate]:
    return lambda u: AdapterUpdate(spec=u.spec, values=u.values, num_examples=examples)


def as_trained(run: RunFolder) -> Callable[[Message], Message]:
    """An update that never passed the gate."""

    def alter(reply: Message) -> Message:
        envelope = Envelope(spec=run.spec(), run=run.name, round=int(reply.metadata.group_id))
        update = decoded(reply, envelope)
        return with_payload(reply, encode_trained(update, envelope))

    return alter


def with_metrics(metrics: dict) -> Callable[[Message], Message]:
    def alter(reply: Message) -> Message:
        reply.content["metrics"] = MetricRecord(metrics)
        return reply

    return alter


def empty(reply: Message) -> Message:
    reply.content = RecordDict()
    return reply


ATTACKS = {
    "NaN": (lambda run: altered_update(run, scaled(math.nan)), "not finite"),
    "infinite": (lambda run: altered_update(run, scaled(math.inf)), "not finite"),
    "weight 1e12": (lambda run: altered_update(run, claiming(10**12)), "examples"),
    "weight 0": (lambda run: altered_update(run, claiming(0)), "examples"),
    "stale round": (lambda run: altered_update(run, scaled(1), round=7), "round"),
    "another run": (lambda run: altered_update(run, scaled(1), run="elsewhere"), "run"),
    "past the gate": (as_trained, "KIND_UPDATE"),
    "cut off": (lambda _: lambda r: with_payload(r, payload_of(r)[:-4]), "bytes"),
    "rubbish": (lambda _: lambda r: with_payload(r, b"x" * 100), "FEDLORA"),
    "empty payload": (lambda _: lambda r: with_payload(r, b""), "bytes"),
    "pickle": (lambda _: lambda r: with_payload(r, b"\x80\x04N.", stype="pickle"), "pickle"),
    "nothing": (lambda _: empty, "no metrics"),
    "private metric": (lambda _: with_metrics({"train_loss": 1.0, "name": 3}), "name"),
    "metric NaN": (lambda _: with_metrics({"train_loss": math.nan}), "train_loss"),
    "metric list": (lambda _: with_metrics({"train_loss": [1.0, 2.0]}), "list"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_bad_update_is_refused_by_name_and_the_rest_is_folded(small_recipe, tmp_path, attack):
    """The record names who was refused and why; the adapter stays finite and the run completes."""
    make, reason = ATTACKS[attack]
    recipe = small_recipe(*SHORT)
    run = start(plan(recipe), runs=tmp_path)
    serve(HostileGrid(app, clients=2, alter=make(run)), run.path, observe=lambda _: None)
    for record in run.records()[1:]:
        assert list(record["folded"]) == ["north"]
        assert reason in record["refused"][BAD]
    assert torch.isfinite(run.load().adapter.values).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("number", "median"), [("1", "this round's"), ("2", "the last round's")])
def test_an_outsized_update_is_refused_in_any_round(
    small_recipe, tmp_path, monkeypatch, method, number, median
):
    """Above max_update_norm times the median norm, an update does not count, by any method."""
    monkeypatch.setenv(FOLDER, str(tmp_path / "sites"))
    recipe = small_recipe(*SHORT, f"federation.method={method}")
    run = start(plan(recipe), runs=tmp_path)

    def once(reply: Message) -> Message:
        factor = 1e6 if reply.metadata.group_id == number else 1.0
        return altered_update(run, scaled(factor))(reply)

    serve(HostileGrid(app, clients=2, alter=once), run.path, observe=lambda _: None)
    refused = [record["refused"] for record in run.records()[1:]]
    assert list(refused[int(number) - 1]) == [BAD]
    if method != "alternate" or number == "1":  # whose last round was of another factor
        assert median in refused[int(number) - 1][BAD]
    assert not refused[2 - int(number)]


def test_a_client_that_fails_is_refused_with_its_own_reason(small_recipe, tmp_path, monkeypatch):
    """What the client raised is what the record says."""
    train_round = Site.train_round

    def failing(self, received, **keys):
        if self.name == BAD:
            raise DataError("the disk with the data is not mounted")
        return train_round(self, received, **keys)

    monkeypatch.setattr(Site, "train_round", failing)
    recipe = small_recipe(*SHORT, "federation.rounds=1")
    run = start(plan(recipe), runs=tmp_path)
    serve(InProcessGrid(app, clients=2), run.path, observe=lambda _: None)
    assert "the disk with the data is not mounted" in run.records()[1]["refused"][BAD]


class Exploding(Sft):
    """An objective whose losses are not finite."""

    def losses(self, base, batch, received, /):
        return super().losses(base, batch, received) * math.inf


DIVERGED = {
    "{unit: none}": "Training diverged at step 1: the loss is inf",
    "{unit: client, epsilon: 50, delta: 1e-2, clip_norm: 1}": (
        "The site's training diverged: lower learning_rate."
    ),
    "{unit: example, epsilon: 8, delta: 1e-3, records: 20}": None,
}


@pytest.mark.parametrize("privacy", DIVERGED)
def test_a_site_whose_training_diverges_sends_nothing(small_recipe, tmp_path, monkeypatch, privacy):
    """It is named, with no number of its own where clients are hidden.

    Where examples are, losses end no training: each private gradient is finite, whatever they are.
    """

    def diverging(train):
        def trained(self, received, **keys):
            if self.name == BAD:
                self = replace(self, objective=Exploding(self.recipe))
            return train(self, received, **keys)

        return trained

    for method in ("train_round", "train_round_privately"):
        monkeypatch.setattr(Site, method, diverging(getattr(Site, method)))
    shape = "federation={rounds: 1, local_steps: 2, evaluate_every: 0, quorum: 1}"
    run = start(plan(small_recipe(f"privacy={privacy}", shape)), runs=tmp_path)
    with sites_in(str(run.path / "sites")):
        serve(InProcessGrid(app, clients=2), run.path, observe=lambda _: None)
    (_, record), reason = run.records(), DIVERGED[privacy]
    if reason is None:
        assert set(record["folded"]) == {"north", "south"}
        assert run.load().adapter.is_finite()
    else:
        assert list(record["folded"]) == ["north"]
        assert record["refused"][BAD].startswith(reason)


def test_a_round_below_its_quorum_stops_the_run_and_can_be_resumed(small_recipe, tmp_path):
    """The accepted update is kept, the error says who was refused, and resuming completes."""
    recipe = small_recipe(*SHORT, "federation.quorum=2", "federation.rounds=1")
    run = start(plan(recipe), runs=tmp_path)
    hostile = HostileGrid(app, clients=2, alter=altered_update(run, scaled(math.nan)))
    with pytest.raises(RunError, match=r"south: .*not finite"):
        serve(hostile, run.path, observe=lambda _: None)
    assert run.load().round == 0
    serve(InProcessGrid(app, clients=2), run.path, observe=lambda _: None)
    assert {"north", "south"} == set(run.records()[1]["folded"])


def test_a_silent_client_is_given_up_after_the_timeout(small_recipe, tmp_path):
    """A client that never answers is named, and the round goes on without it."""

    class SilentGrid(InProcessGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            silent = {i for i in message_ids if self._waiting[i].metadata.dst_node_id == 2}
            asked = [i for i in message_ids if i not in silent]
            training = all(self._waiting[i].metadata.message_type == "train" for i in silent)
            return super().pull_messages(asked if training else message_ids)

    recipe = small_recipe(*SHORT, "federation.rounds=1", "federation.round_timeout=5")
    run = start(plan(recipe), runs=tmp_path)
    serve(SilentGrid(app, clients=2), run.path, observe=lambda _: None)
    record = run.records()[1]
    assert list(record["folded"]) == ["north"]
    assert "round_timeout" in record["refused"][BAD]
