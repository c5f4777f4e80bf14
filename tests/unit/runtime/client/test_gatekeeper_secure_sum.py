"""What a deployed site's gate lets be asked of it in a secure sum."""

from collections.abc import Collection
from dataclasses import replace

import pytest
from flwr.app import Message

from fedlora.lock import BaseDigests
from fedlora.privacy.secure_aggregation.collector import Collector
from fedlora.privacy.secure_aggregation.participant import Participant
from fedlora.recipe import Recipe
from fedlora.runtime import records
from fedlora.runtime.lock import locked
from fedlora.runtime.secure_terms import terms_of
from fedlora.runtime.site.mods import SAID
from fedlora.secure_sum.v1 import secure_sum_pb2 as pb
from fedlora.signing import PublicKey, Signer
from fedlora.wire.encodings import encoded_size
from simulations.campaigns.gated_site import SITE, GatedSite, gated
from simulations.secure_sums import new_signer
from tests.strategies import make_spec
from tests.unit.runtime.client.test_gatekeeper import POLICY, work

PEERS = ("east", "south")
SPEC = make_spec(rank=8, alpha=16.0, modules={"layers.0.attn.q_proj": (8, 1024)})
SECURE = locked(
    Recipe.from_yaml(
        "privacy: {unit: none, secure_aggregation: true}\n"
        "datasets: [{path: a, site: east}, {path: a, site: north}, {path: a, site: south}]\n"
        "federation: {rounds: 3, local_steps: 2}\n"
    ),
    SPEC,
    BaseDigests(weights_digest="0" * 64, tokenizer_digest="0" * 64),
)


class Known:
    """A site that is summed with anybody."""

    def __init__(self) -> None:
        self.signer: Signer = new_signer()

    def identify(self, site: str, key: PublicKey) -> None:
        """Any key will do."""

    def admit(self, members: Collection[str], last: Collection[str]) -> None:
        """And any cohort."""


class Aggregator:
    """Asks the site for each stage, and plays its peers."""

    def __init__(self, site: GatedSite) -> None:
        self.site, self.terms = site, terms_of(SECURE)
        self.gate = replace(site.gate, identity=Known())

    def ask(self, stage: str, said: object = None, *, recipe: Recipe = SECURE) -> Message:
        payload = None if said is None else said.SerializeToString()
        kind = f"train.{stage}" if stage else "train"
        return self.gate.answer(self.site.instruction(kind, recipe=recipe, payload=payload))

    def until_mask(self) -> pb.Inbox:
        """Play the stages up to the inbox of the site; return it."""
        own = pb.Advertisement.FromString(records.unpack(self.ask("").content))
        self.collector = Collector(terms=self.terms, size=SPEC.part(frozenset({"B"})).size + 1)
        self.collector.take_advertisement(SITE, own)
        self.peers = {
            name: Participant(
                site=name,
                signer=new_signer(),
                terms=self.terms,
                context=own.context,
                identify=lambda _site, _key: None,
                admit=lambda _members: None,
            )
            for name in PEERS
        }
        for name, peer in self.peers.items():
            self.collector.take_advertisement(name, peer.advertise())
        rosters = self.collector.rosters()
        for name, peer in self.peers.items():
            self.collector.take_shares(name, peer.share(rosters[name]))
        shares = self.ask("share", rosters[SITE])
        self.collector.take_shares(SITE, pb.Shares.FromString(records.unpack(shares.content)))
        return self.collector.inboxes()[SITE]


@pytest.fixture(name="at")
def _at(tmp_path):
    return lambda **policy: gated(tmp_path / "site", SECURE, POLICY | policy, work=work)


def test_a_stage_is_of_the_recipe_that_was_trained(at):
    """Another's scale would make a site's part of the sum vanish, and all others tell of one."""
    tiny = Recipe.from_yaml(SECURE.to_yaml(), overrides=["privacy.clip_norm=1e30"])
    with at() as site:
        aggregator = Aggregator(site)
        inbox = aggregator.until_mask()
        refused = aggregator.ask("mask", inbox, recipe=tiny)
        assert refused.has_error()
        assert refused.error.reason in SAID
        assert aggregator.ask("mask", inbox).has_content()


def test_the_stages_after_the_vector_need_no_room_for_another(at):
    """``bytes.per_round`` of one update, and of keys and shares beside it, is enough for a sum."""
    sent = encoded_size(SPEC.part(frozenset({"B"})), "fp32")
    with at(bytes={"per_round": sent + 4_000}) as site:
        aggregator = Aggregator(site)
        assert aggregator.ask("mask", aggregator.until_mask()).has_content()
        assert aggregator.ask("sign", pb.Survivors(sites=sorted((SITE, *PEERS)))).has_content()
    assert sent > 2 * 4_000
