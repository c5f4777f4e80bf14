"""What a deployed site's gate does with one instruction: judge, log, let work, inspect, log.

Nothing comes in or leaves that is not in the evidence log first.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Protocol

from flwr.app import Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode

from fedlora.errors import (
    FedloraError,
    NotYetError,
    PolicyError,
    StorageError,
)
from fedlora.gate.chain import AdapterChain, digest_of
from fedlora.gate.evidence.entries import Decided, Received, Refused, Released
from fedlora.gate.evidence.log import EvidenceLog
from fedlora.gate.inbound import require_adapter
from fedlora.runtime import records
from fedlora.runtime.client.approvals import Approvals
from fedlora.runtime.client.configuration import SiteConfiguration, at_site
from fedlora.runtime.client.purposes import planned_purpose, purpose_of
from fedlora.runtime.site.asked import SITE_KEY, Asked
from fedlora.runtime.site.budget import site_ledger
from fedlora.runtime.site.mods import (
    gate,
    guarded,
    receipted,
    require_planned,
    resend,
    said_of,
)
from fedlora.runtime.site.outbox import require_room
from fedlora.runtime.site.secure_sum import Identity, answer_stage, held_back, stage_of
from fedlora.signing import PublicKey
from fedlora.wire.codec import decode_state
from fedlora.wire.encodings import encoded_size

_log = logging.getLogger(__name__)

MAX_RECIPE_LETTERS = 2**18
"""A locked recipe of a model of 400 billion has some 70,000; to read one of so many takes 4 s."""

_LINES, _SHOWN = 25, 300
"""Reasons of a refusal that are logged, and letters of each, which may quote the instruction."""


class Trainer(Protocol):
    """What trains and evaluates on the site's data, and is trusted with nothing else."""

    def ask(self, message: Message, *, recipe: str, site: str) -> Message:
        """Return the answer of the bare handler.

        Args:
            message: the instruction.
            recipe: as the trainer plays it, with the site's own data.
            site: the site's name.
        """


@dataclass(frozen=True, kw_only=True)
class Gatekeeper:
    """Answers instructions as its operator's policy says.

    Guarantees:
        - An instruction that the policy does not allow does not reach the trainer.
        - What leaves is an update that this object encoded, metrics by name, or an error of a
          closed list; its digest is in the evidence log before it is returned.
        - An error never says why in words of its own.
    """

    configuration: SiteConfiguration
    trainer: Trainer
    evidence: EvidenceLog
    aggregator: PublicKey
    """Who gives receipts of the evidence log."""
    approvals: Approvals
    chain: AdapterChain
    identity: Identity
    """Who the site is in secure sums."""
    policy_digest: str
    """SHA-256 of the policy's text, which is kept with the log."""
    sleep: Callable[[float], None] = time.sleep

    @property
    def context(self) -> Context:
        """Who this node is: what the SuperNode says of that does not count."""
        return Context(
            run_id=0,
            node_id=0,
            node_config={SITE_KEY: self.configuration.site},
            state=RecordDict(),
            run_config={},
        )

    def answer(self, message: Message) -> Message:
        """Return the reply to an instruction, or the error that stands for it.

        Raises:
            EvidenceError: the log is not whole: nothing can be answered.
            StorageError: the log cannot be written.
        """
        asked = None
        try:
            asked = self._read(message)
            self._judge(message, asked)
            reply = self._worked(message, asked)
        except Exception as error:  # noqa: BLE001 - whatever it is, its text may tell of the data
            self._wait()
            return self._refused(message, error, asked)
        self._wait()
        self._release(message, reply, asked)
        return reply

    def _read(self, message: Message) -> Asked:
        """Log that an instruction came, and read it.

        Raises:
            FedloraError: it is none.
        """
        content = message.content if message.has_content() else RecordDict()
        digests = records.digests_of(content)
        received = partial(
            Received,
            purpose=purpose_of(message),
            message=message.metadata.message_id,
            size=digests.size,
            payload=digests.payload,
            content=digests.content,
        )
        asked = None
        try:
            task = records.Task.of(content)
            if len(task.recipe) > MAX_RECIPE_LETTERS:
                raise PolicyError(
                    f"The recipe has {len(task.recipe):,} letters; at most {MAX_RECIPE_LETTERS:,} "
                    "are read."
                )
            asked = Asked.of(message, self.context)
        finally:
            if asked is None:
                self.evidence.append(received(run="", round=0, recipe="", spec=None))
        run, number, spec = asked.envelope.run, asked.envelope.round, asked.envelope.spec.digest
        recipe = self.evidence.keep(task.recipe)
        self.evidence.append(received(run=run, round=number, recipe=recipe, spec=spec))
        return asked

    def _judge(self, message: Message, asked: Asked) -> None:
        """Do nothing but log it if the policy allows an instruction.

        Raises:
            PolicyError: it does not.
        """
        decided = partial(
            Decided,
            run=asked.envelope.run,
            round=asked.envelope.round,
            purpose=purpose_of(message),
            message=message.metadata.message_id,
            policy=self.policy_digest,
        )
        try:
            self._require_allowed(message, asked)
        except FedloraError as error:
            lines = str(error).splitlines()[:_LINES]
            reasons = tuple(line[:_SHOWN] for line in lines)
            self.evidence.append(decided(allowed=False, reasons=reasons))
            raise
        self.evidence.append(decided(allowed=True, reasons=()))

    def _require_allowed(self, message: Message, asked: Asked) -> None:
        recipe, envelope, policy = asked.recipe, asked.envelope, self.configuration.policy
        run, spec = envelope.run, envelope.spec
        kind = planned_purpose(message)
        records.require_instruction(message.content, private=recipe.privacy.unit == "example")
        self.evidence.require_receipted(
            records.receipt_of(message.content), aggregator=self.aggregator
        )
        policy.require_recipe(recipe, spec, site=asked.site)
        at_site(recipe, self.configuration)  # the base is here, too
        require_planned(recipe, kind, envelope.round)
        policy.require_now(datetime.now().astimezone())
        stage = stage_of(message)
        # before anything is charged, and the loss of encoding kept; other stages send some keys
        if kind == "train" and stage in ("", "mask"):
            sent = records.envelope_of_update(envelope, recipe, asked.site).spec
            self._require_room(encoded_size(sent, recipe.wire.codec), asked)
        self.approvals.require(run, recipe, spec=spec, policy=policy)
        if stage:  # what is summed is settled by the keys that it was advertised with
            return
        state = decode_state(
            records.unpack(message.content),
            envelope,
            compress=recipe.wire.compress,
            max_bytes=recipe.wire.max_bytes,
        )
        number = envelope.round - (asked.purpose == "train")
        digest = digest_of(state)
        seen = self.chain.require_next(run, recipe.digest, number=number, digest=digest)
        norms = require_adapter(
            state, number=number, recipe=recipe, bounds=policy.adapter, seen=seen
        )
        self.chain.keep(run, recipe.digest, number=number, digest=digest, norms=norms)

    def _worked(self, message: Message, asked: Asked) -> Message:
        """Return the inspected and encoded answer."""
        recipe = at_site(asked.recipe, self.configuration).to_yaml()

        def ask(message: Message, context: Context) -> Message:  # noqa: ARG001 - Flower's interface
            require_room(self.evidence.folder, asked.envelope.spec)
            return self.trainer.ask(message, recipe=recipe, site=asked.site)

        if stage_of(message):
            reply = guarded(answer_stage, [receipted])(message, self.context)
        else:
            policy = self.configuration.policy
            guards = [receipted, held_back(self.identity), resend, gate(policy)]
            reply = guarded(ask, guards)(message, self.context)
        self._require_room(records.digests_of(reply.content).size, asked)
        return reply

    def _require_room(self, size: int, asked: Asked) -> None:
        """Do nothing if the policy lets so many more bytes leave."""
        today = datetime.now().astimezone().replace(hour=0, minute=0, second=0, microsecond=0)
        self.configuration.policy.require_room(
            size,
            sent_in_round=self.evidence.bytes_released(asked.envelope.run, asked.envelope.round),
            sent_today=self.evidence.bytes_released_since(today),
        )

    def _wait(self) -> None:
        """Wait for the time at which something may leave, be it an answer or an error."""
        every = self.configuration.policy.release_every
        if every:
            self.sleep(-time.time() % every)

    def _release(self, message: Message, reply: Message, asked: Asked) -> None:
        """Log what leaves, and say in it how far the log has come."""
        digests = records.digests_of(reply.content)
        private = asked.recipe.privacy.unit == "example"
        ledger = site_ledger(asked.site).head() if private else None
        self.evidence.append(
            Released(
                run=asked.envelope.run,
                round=asked.envelope.round,
                purpose=purpose_of(message),
                message=message.metadata.message_id,
                size=digests.size,
                payload=digests.payload,
                content=digests.content,
                metrics=tuple(sorted(records.metrics_of(reply.content))),
                recipe=self.evidence.keep(records.Task.of(message.content).recipe),
                spec=asked.envelope.spec.digest,
                ledger_count=ledger.count if ledger else None,
                ledger_hash=ledger.hash if ledger else None,
            )
        )
        records.add_evidence(reply.content, self.evidence.signed_head())

    def _refused(self, message: Message, error: Exception, asked: Asked | None) -> Message:
        """Log that an error leaves in place of an answer, and return it."""
        if isinstance(error, FedloraError):
            _log.warning("%s", error)
        else:
            _log.error("The instruction cannot be answered.", exc_info=error)
        said = said_of(error)
        self.evidence.append(
            Refused(
                run=asked.envelope.run if asked else "",
                round=asked.envelope.round if asked else 0,
                purpose=purpose_of(message),
                message=message.metadata.message_id,
                said=said,
                cause=type(error).__name__,
            )
        )
        later = isinstance(error, NotYetError | StorageError)
        code = ErrorCode.MOD_FAILED_PRECONDITION if later else ErrorCode.CLIENT_APP_RAISED_EXCEPTION
        return Message(Error(code, said), reply_to=message)
