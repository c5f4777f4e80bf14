"""A site whose gate a hostile aggregator attacks: all of it is real but the network."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Context, Message, RecordDict
from flwr.common.constant import PARTITION_ID_KEY
from flwr.supercore.task_identity import TaskIdentity

from fedlora import atomic
from fedlora.adapter import AdapterState
from fedlora.gate.chain import AdapterChain
from fedlora.gate.evidence.log import EvidenceLog
from fedlora.gate.evidence.statements import Receipt
from fedlora.recipe import Recipe
from fedlora.runtime import records
from fedlora.runtime.client.approvals import Approvals
from fedlora.runtime.client.configuration import SiteConfiguration
from fedlora.runtime.client.folder import SiteFolder
from fedlora.runtime.client.gatekeeper import Gatekeeper
from fedlora.runtime.client.identity import GateIdentity
from fedlora.runtime.client.peers import read_peers, write_peers
from fedlora.runtime.enrolment import JoinBundle, certificate_fingerprint
from fedlora.runtime.lock import spec_of
from fedlora.runtime.server.authority import Authority
from fedlora.runtime.site import client
from fedlora.runtime.site.budget import site_ledger
from fedlora.runtime.site.memory import FOLDER
from fedlora.signing import PublicKey, Signer
from fedlora.wire.codec import Envelope, encode_state

SITE = "north"
_ROWS = 30


def worked(message: Message, recipe: Recipe, site: str) -> Message:
    """Return what the bare handlers answer, as the trainer's process does."""
    handler = client.train if message.metadata.message_type == "train" else client.evaluate
    context = Context(
        run_id=1,
        node_id=1,
        node_config={PARTITION_ID_KEY: recipe.site_names.index(site)},
        state=RecordDict(),
        run_config={},
    )
    return handler(message, context)


@dataclass
class WatchedTrainer:
    """A trainer that says how often it was asked, and for what."""

    work: Callable[[Message, Recipe, str], Message] = worked
    recipes: list[str] = field(default_factory=list)
    """As it was told to play them."""

    def ask(self, message: Message, *, recipe: str, site: str) -> Message:
        """Answer, with the recipe that the gate gave."""
        self.recipes.append(recipe)
        task = records.Task.of(message.content)
        asked = records.Task(recipe=recipe, run=task.run, round=task.round)
        payload = records.pack(records.unpack(message.content))
        content = records.instruction(asked.to_record(), payload)
        kind = message.metadata.message_type.partition(".")[0]
        return self.work(Message(content, 1, kind), Recipe.from_yaml(recipe), site)


@dataclass(frozen=True, kw_only=True)
class GatedSite:
    """A site's gate, and what an aggregator that it has joined can send it."""

    recipe: Recipe
    """Locked: what the site's policy allows."""
    gate: Gatekeeper
    trainer: WatchedTrainer
    aggregator: Signer
    folder: SiteFolder

    def pin(self, name: str, key: PublicKey) -> None:
        """Pin another site to its gate's key, as the operator does."""
        write_peers(self.folder, read_peers(self.folder).adding(name, key.fingerprint))

    def receipt(self, **changes: Any) -> Receipt:  # noqa: ANN401 - as a receipt's fields
        """Return the aggregator's word of how far the site's log has come, or another word."""
        head = self.gate.evidence.head()
        facts = {"count": head.count, "hash": head.hash, "site": SITE} | changes
        return Receipt.sign(self.aggregator, **facts)

    def initial(self, recipe: Recipe | None = None) -> AdapterState:
        """Return the adapter that a run begins with."""
        recipe = recipe or self.recipe
        return AdapterState.initial(spec_of(recipe), seed=recipe.seed)

    def instruction(
        self,
        kind: str = "train",
        *,
        run: str = "run",
        number: int = 1,
        recipe: Recipe | None = None,
        text: str | None = None,
        state: AdapterState | None = None,
        payload: bytes | None = None,
        change: Callable[[RecordDict], object] = lambda _: None,
    ) -> Message:
        """Return an instruction: an honest one, but for what is said otherwise.

        Args:
            kind: Flower's type of the message.
            run: its name.
            number: of the round.
            recipe: the site's own by default.
            text: the recipe as it is sent.
            state: the global adapter; by default the one that a run begins with.
            payload: the encoded adapter.
            change: is given all that is sent.
        """
        recipe = recipe or self.recipe
        if payload is None:
            state = state or self.initial(recipe)
            envelope = Envelope(spec=state.spec, run=run, round=number)
            payload = encode_state(state, envelope, compress=recipe.wire.compress)
        text = recipe.to_yaml() if text is None else text
        task = records.Task(recipe=text, run=run, round=number)
        content = records.instruction(task.to_record(), records.pack(payload))
        records.add_evidence(content, self.receipt())
        if recipe.privacy.unit == "example":
            records.add_head(content, site_ledger(SITE).head())
        change(content)
        return message_of(content, kind)


def message_of(content: RecordDict, kind: str) -> Message:
    """Return a message with the identifier that Flower gives it."""
    # Flower builds a message only inside a task, as in fedlora.runtime.carriers.in_process.
    TaskIdentity.task_id, TaskIdentity.node_id, TaskIdentity.run_id = 1, 1, 1
    message = Message(content, 1, "train")
    message.metadata.__dict__["_message_type"] = kind  # Flower's own check is the sender's
    message.metadata.__dict__["_message_id"] = message.object_id
    return message


@contextmanager
def gated(
    folder: Path,
    recipe: Recipe,
    policy: Mapping[str, Any],
    *,
    work: Callable[[Message, Recipe, str], Message] = worked,
    **configuration: object,
) -> Iterator[GatedSite]:
    """Yield a site with a gate, in a folder of its own.

    Args:
        folder: an empty one, or that of a site that was there before.
        recipe: locked; what the site is asked for.
        policy: the operator's.
        work: what the trainer does.
        configuration: what else ``site.yaml`` says.
    """
    site, data = SiteFolder(folder), folder / "rows.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"prompt": f"What is {n}?", "completion": f"A number, {n}."} for n in range(_ROWS)]
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    values = {"site": SITE, "data": [{"path": str(data)}], "policy": policy, **configuration}
    gate, aggregator = (
        Signer(Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32)) for n in (1, 2)
    )
    _enrol(site, gate=gate.public, aggregator=aggregator.public)
    evidence = EvidenceLog(site.evidence, site=SITE, signer=gate)
    trainer = WatchedTrainer(work=work)
    own = SiteConfiguration.model_validate(values)
    keeper = Gatekeeper(
        configuration=own,
        trainer=trainer,
        evidence=evidence,
        aggregator=aggregator.public,
        approvals=Approvals(site.approvals),
        chain=AdapterChain(site.chain),
        identity=GateIdentity(folder=site, signer=gate, policy=own.policy),
        policy_digest=evidence.keep(str(policy)),
    )
    before = os.environ.get(FOLDER)
    os.environ[FOLDER] = str(site.sites)
    try:
        yield GatedSite(
            recipe=recipe, gate=keeper, trainer=trainer, aggregator=aggregator, folder=site
        )
    finally:
        del os.environ[FOLDER]
        if before is not None:
            os.environ[FOLDER] = before


def _enrol(site: SiteFolder, *, gate: PublicKey, aggregator: PublicKey) -> None:
    """Write what a site has once it is enrolled, and its gate reads."""
    authority = Authority.new()
    bundle = JoinBundle(
        site=SITE,
        aggregator="127.0.0.1:1",
        ca_certificate=authority.pair().certificate.decode(),
        ca_fingerprint=certificate_fingerprint(authority.certificate),
        aggregator_key=aggregator.text,
    )
    atomic.write_file(site.join, bundle.to_yaml())
    atomic.write_file(site.gate_key.with_name(f"{site.gate_key.name}.pub"), f"{gate.text}\n")
