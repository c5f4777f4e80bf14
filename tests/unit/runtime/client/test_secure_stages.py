"""A deployed site's gate through all stages of a secure sum: what leaves it, what it remembers."""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from flwr.app import Message
from google.protobuf.message import Message as Payload

from fedlora.gate.evidence.entries import Decided, Received, Refused, Released
from fedlora.lock import BaseDigests
from fedlora.privacy.secure_aggregation.collector import Collector
from fedlora.privacy.secure_aggregation.participant import Participant
from fedlora.privacy.secure_aggregation.statements import read
from fedlora.recipe import Recipe
from fedlora.runtime import records
from fedlora.runtime.fixed_point import fixed_point_of
from fedlora.runtime.lock import locked
from fedlora.runtime.secure_terms import terms_of
from fedlora.runtime.site import secure_sum
from fedlora.secure_sum.v1 import secure_sum_pb2 as pb
from fedlora.signing import Signer
from fedlora.wire.codec import encode_trained
from simulations.campaigns.gated_site import SITE, GatedSite, gated
from simulations.secure_sums import anybody, new_signer
from tests.strategies import make_spec
from tests.unit.runtime.client.test_gatekeeper import POLICY, envelope_of, reason, update_of

OTHERS = ("east", "south", "west")
STAGES = ("train", "train.share", "train.mask", "train.sign", "train.reveal")
SPEC = make_spec(rank=8, alpha=16.0)


def recipe_of(privacy: str, *overrides: str) -> Recipe:
    """Return a recipe of four sites, locked."""
    datasets = ", ".join(f"{{path: a, site: {name}}}" for name in (SITE, *OTHERS))
    text = (
        f"privacy: {{unit: none, {privacy}}}\n"
        f"datasets: [{datasets}]\n"
        "federation: {rounds: 3, local_steps: 2, method: freeze-a, evaluate_every: 0}\n"
        "wire: {codec: fp32}\n"
    )
    digests = BaseDigests(weights_digest="0" * 64, tokenizer_digest="0" * 64)
    return locked(Recipe.from_yaml(text, overrides=overrides), SPEC, digests)


RECIPE = recipe_of("secure_aggregation: true")
PLAIN = recipe_of("secure_aggregation: false")
FIXED = fixed_point_of(RECIPE)
SIZE = envelope_of(RECIPE).spec.size + 1
MASKED = 4 * SIZE
"""Bytes of a masked vector."""


def silently(message: Message, recipe: Recipe, site: str) -> Message:
    """Train without a base or data, otherwise in each round, and say nothing of the loss."""
    task = records.Task.of(message.content)
    envelope = envelope_of(recipe, run=task.run, number=task.round)
    update = update_of(recipe, envelope)
    payload = encode_trained(replace(update, values=update.values / task.round), envelope)
    return Message(records.reply({}, payload=payload), reply_to=message)


@pytest.fixture(name="signers", scope="module")
def _signers() -> Mapping[str, Signer]:
    """The identities of the other sites."""
    return {name: new_signer() for name in OTHERS}


@pytest.fixture(name="at")
def _at(tmp_path, signers):
    """Return what makes a site that has pinned all others, with other keys of its policy.

    Made again, it is the gate after a restart.
    """

    def make(*, recipe: Recipe = RECIPE, **policy: object):
        secure_sum._attempts.clear()
        return gated(tmp_path / "site", recipe, POLICY | policy, work=silently)

    return make


@dataclass
class Attempt:
    """An attempt of one site behind its gate and three without; its stages, played in order."""

    site: GatedSite
    signers: Mapping[str, Signer]
    number: int = 1
    replies: dict[str, Message] = field(default_factory=dict)
    """Of the gate, by the kind of instruction."""
    members: dict[str, Participant] = field(default_factory=dict)
    collector: Collector = field(init=False)

    def ask(self, kind: str, content: Payload | None = None) -> bytes:
        """Return what the gate answers; nothing if it refuses."""
        state = self.site.initial()
        for tensor, values in state.factors():
            if tensor.factor == "B":
                values.fill_(1e-3 * (self.number - 1))
        payload = None if content is None else content.SerializeToString()
        message = self.site.instruction(kind, number=self.number, state=state, payload=payload)
        reply = self.replies[kind] = self.site.gate.answer(message)
        return b"" if reply.has_error() else records.unpack(reply.content)

    def play(self, *, until: str = "train.reveal", lost: Collection[str] = ()) -> str:
        """Play stages up to one; return why the gate has left, if it has.

        Args:
            until: the last.
            lost: other sites that do not send a masked vector.
        """
        for kind in STAGES[: STAGES.index(until) + 1]:
            _, _, stage = kind.partition(".")
            getattr(self, f"_{stage or 'advertise'}")(kind, lost)
            if self.replies[kind].has_error():
                return reason(self.replies[kind])
        return ""

    def _advertise(self, kind: str, _lost: Collection[str]) -> None:
        if not (payload := self.ask(kind)):
            return
        mine = read(pb.Advertisement, payload)
        self.collector = Collector(terms=terms_of(RECIPE), context=mine.context, size=SIZE)
        self.collector.take_advertisement(SITE, mine)
        for name, signer in self.signers.items():
            member = self.members[name] = Participant(
                site=name,
                signer=signer,
                terms=terms_of(RECIPE),
                context=mine.context,
                identify=lambda _site, _key: None,
                admit=anybody,
            )
            self.collector.take_advertisement(name, member.advertise())

    def _share(self, kind: str, _lost: Collection[str]) -> None:
        rosters = self.collector.rosters()
        if payload := self.ask(kind, rosters[SITE]):
            self.collector.take_shares(SITE, read(pb.Shares, payload))
        for name, member in self.members.items():
            self.collector.take_shares(name, member.share(rosters[name]))

    def _mask(self, kind: str, lost: Collection[str]) -> None:
        inboxes = self.collector.inboxes()
        if payload := self.ask(kind, inboxes[SITE]):
            self.collector.take_masked(SITE, payload)
        for name in set(self.members) - set(lost):
            vector = np.zeros(SIZE, np.uint32)
            self.members[name].mask(inboxes[name], vector)
            self.collector.take_masked(name, vector.tobytes())

    def _sign(self, kind: str, lost: Collection[str]) -> None:
        survivors = self.collector.survivors_for()
        if payload := self.ask(kind, survivors[SITE]):
            self.collector.take_signature(SITE, read(pb.Signature, payload))
        for name in set(self.members) - set(lost):
            said = self.members[name].sign(survivors[name])
            self.collector.take_signature(name, said)

    def _reveal(self, kind: str, lost: Collection[str]) -> None:
        unmaskings = self.collector.unmaskings()
        if payload := self.ask(kind, unmaskings[SITE]):
            self.collector.take_revealed(SITE, read(pb.Revealed, payload))
        for name in set(self.members) - set(lost):
            said = self.members[name].reveal(unmaskings[name])
            self.collector.take_revealed(name, said)


@pytest.fixture(name="attempt")
def _attempt(signers):
    """Return what makes an attempt with a site, which pins the others if it has not yet."""

    def make(site: GatedSite, *, number: int = 1) -> Attempt:
        for name, signer in signers.items():
            site.pin(name, signer.public)
        return Attempt(site, signers, number)

    return make


def logged(site: GatedSite, kind: type) -> list:
    return [each.entry for each in site.gate.evidence.entries() if isinstance(each.entry, kind)]


def why(site: GatedSite) -> str:
    """Return the reasons of the last decision against an instruction."""
    return "\n".join(logged(site, Decided)[-1].reasons)


def test_the_sum_is_of_what_the_gate_inspected(at, attempt):
    """And the very bytes that left are on record, a digest for each stage, without a metric."""
    with at() as site:
        played = attempt(site)
        assert played.play() == ""
        values, weight = FIXED.decode(played.collector.total())
        received, released = logged(site, Received), logged(site, Released)
    update = update_of(RECIPE, envelope_of(RECIPE))
    assert weight == update.num_examples
    assert (values - update.values).abs().max() <= FIXED.error_bound(weight)
    assert tuple(entry.purpose for entry in received) == STAGES
    assert tuple(entry.purpose for entry in released) == STAGES
    for entry in released:
        payload = records.unpack(played.replies[entry.purpose].content)
        assert entry.payload == hashlib.sha256(payload).hexdigest()
        assert (entry.size, entry.metrics) == (len(payload), ())
    [masked] = [entry for entry in released if entry.purpose == "train.mask"]
    assert masked.size == MASKED


@pytest.mark.parametrize("stage", STAGES[1:])
@pytest.mark.parametrize("recipe", [RECIPE, PLAIN], ids=["secure", "plain"])
def test_a_stage_without_training_before_it_is_refused(at, stage, recipe, caplog):
    """The gate has no keys for it; also in a run without secure sums."""
    with at(recipe=recipe) as site:
        assert site.gate.answer(site.instruction(stage, payload=b"")).has_error()
        assert site.trainer.recipes == []
        assert not logged(site, Released)
    assert "the site has no keys for it" in caplog.text


@pytest.mark.parametrize("kind", ["train.unmask", "evaluate.share", "query.share"])
def test_an_unknown_stage_is_refused(at, attempt, kind):
    """Whatever was advertised; nothing but an error leaves."""
    with at() as site:
        attempt(site).play(until="train")
        assert site.gate.answer(site.instruction(kind)).has_error()
        assert len(logged(site, Released)) == len(site.trainer.recipes) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"number": 2},
        {"run": "another"},
        {"recipe": recipe_of("secure_aggregation: true, clip_norm: 1")},
        {"recipe": PLAIN},
    ],
    ids=["round", "run", "recipe", "plain"],
)
def test_a_stage_of_something_else_than_was_advertised_for_is_refused(at, attempt, other, caplog):
    """Another round, run, or recipe that the policy allows as well; the attempt itself goes on."""
    with at() as site:
        played = attempt(site)
        played.play(until="train")
        assert site.gate.answer(site.instruction("train.share", payload=b"", **other)).has_error()
        assert "the site has no keys for it" in caplog.text
        played._share("train.share", ())
        assert not played.replies["train.share"].has_error()


def test_a_run_that_nobody_has_approved_is_in_no_sum(at, attempt):
    """A person is asked before the site trains, and each stage asks whether one was."""
    with at(approval="required") as site:
        assert "does not answer yet" in attempt(site).play()
        assert site.gate.answer(site.instruction("train.share", payload=b"")).has_error()
        assert "approve" in why(site)
        assert site.trainer.recipes == []
        assert not logged(site, Released)


def test_a_plain_recipe_sends_its_update_as_ever(at):
    """Unless the policy wants all updates masked."""
    with at(recipe=PLAIN) as site:
        payload = records.unpack(site.gate.answer(site.instruction()).content)
        assert len(payload) > 4 * (SIZE - 1)
    with at(recipe=PLAIN, secure_aggregation={"required": True}) as site:
        assert site.gate.answer(site.instruction(run="two")).has_error()
        assert "secure_aggregation.required" in why(site)


def test_a_site_that_is_not_pinned_is_refused_by_name(at, signers, attempt, caplog):
    """Nothing is shared with it; what leaves says what is missing, the site's log who."""
    with at() as site:
        for name in ("east", "south"):
            site.pin(name, signers[name].public)
        site.pin("west", new_signer().public)
        said = Attempt(site, signers).play()
        assert tuple(entry.purpose for entry in logged(site, Released)) == ("train",)
        assert logged(site, Refused)[-1].cause == "PeerError"
    assert "no pin of another in the cohort" in said
    assert "Site west is pinned to the key" in caplog.text


def test_the_policy_judges_rosters_and_survivors(at, attempt, caplog):
    """How many there are, and how many of them were in the sum before: in the log by its key."""
    with at(secure_aggregation={"min_cohort": 4}) as site:
        assert "policy" in attempt(site).play(lost=["west"])
        assert logged(site, Released)[-1].purpose == "train.mask"  # the roster was large enough
    assert "secure_aggregation.min_cohort: at least 4 is allowed, but a sum of 3" in caplog.text


def test_sums_must_overlap_as_the_policy_says(at, attempt, caplog):
    """Also with a sum before the gate's restart."""
    with at() as site:
        assert attempt(site).play() == ""
    with at(secure_aggregation={"min_overlap": 0.9}) as site:
        assert "policy" in attempt(site, number=2).play(lost=["west"])
        assert logged(site, Released)[-1].purpose == "train.mask"
        assert "3 of 4 sites" in caplog.text
        assert attempt(site, number=2).play() == ""


def test_masked_bytes_count(at, attempt):
    """All that a round's stages send; what is too much is refused before the site trains, or by
    the stage that it is too much for.
    """
    with at() as site:
        attempt(site).play()
        sizes = {entry.purpose: entry.size for entry in logged(site, Released)}
    assert sizes["train.mask"] == MASKED
    total = sum(sizes.values())
    with at(bytes={"per_round": total, "per_day": 2 * total}) as site:
        assert attempt(site, number=2).play() == ""
        assert "policy" in attempt(site, number=3).play()
        assert len(site.trainer.recipes) == 1
    with at(bytes={"per_round": total - 1}) as site:
        assert "policy" in attempt(site, number=3).play()
        assert logged(site, Released)[-1].purpose == "train.sign"


def test_an_update_that_was_masked_in_vain_is_masked_again(at, attempt):
    """In a new attempt, with keys of its own and without the trainer."""
    with at() as site:
        first, second = attempt(site), attempt(site)
        first.play(until="train.mask")
        assert second.play() == ""
        masked = [attempt.replies["train.mask"].content for attempt in (first, second)]
        assert len(site.trainer.recipes) == 1
        values, _ = FIXED.decode(second.collector.total())
    assert records.unpack(masked[0]) != records.unpack(masked[1])
    update = update_of(RECIPE, envelope_of(RECIPE))
    assert (values - update.values).abs().max() <= FIXED.error_bound(update.num_examples)


@pytest.mark.parametrize("restarted", [False, True])
def test_an_update_that_was_in_a_sum_is_in_no_other(at, attempt, restarted):
    """The gate signs and reveals nothing for other members, also after its restart.

    Over the same members it is the same sum.
    """
    with at() as site:
        assert attempt(site).play() == ""
        if not restarted:
            assert "is in a sum" in attempt(site).play(lost=["west"])
            assert logged(site, Released)[-1].purpose == "train.mask"
    with at() as site:
        assert "is in a sum" in attempt(site).play(lost=["west"])
        assert logged(site, Released)[-1].purpose == "train.mask"
        assert attempt(site).play() == ""
        assert site.trainer.recipes == []


@pytest.mark.parametrize("last", STAGES[:-1])
def test_a_gate_that_was_restarted_has_dropped_out(at, attempt, last, caplog):
    """Its keys were in memory; it says so in its log, and waits for the next attempt."""
    with at() as site:
        played = attempt(site)
        assert played.play(until=last) == ""
    with at() as site:
        following = STAGES[STAGES.index(last) + 1]
        assert site.gate.answer(site.instruction(following, payload=b"")).has_error()
        assert "was started anew since" in caplog.text
        assert attempt(site).play() == ""
        assert site.trainer.recipes == []


@pytest.mark.parametrize("damaged", ["", "[]", "null", '{"1": ["north"]}', '{"' + "0" * 64])
def test_a_damaged_record_of_sums_is_named_and_nothing_is_revealed(at, attempt, damaged, caplog):
    """Without it the site cannot know what it has revealed."""
    with at() as site:
        path = site.folder.sites / SITE / "summed.json"
        assert attempt(site).play() == ""
        (known,) = json.loads(path.read_text()).values()
        assert known["members"] == sorted([SITE, *OTHERS])
        path.write_text(damaged)
        played = attempt(site, number=2)
        assert "cannot write to its disk" in played.play()
        assert "train.sign" not in {entry.purpose for entry in logged(site, Released)[5:]}
    assert f"{path}: the sums that the site has been in cannot be read" in caplog.text
