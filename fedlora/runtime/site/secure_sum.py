"""A site's part in secure sums: what the gate let pass is masked, and its shares revealed once.

A site that has trained answers with fresh keys in place of its update, and holds that back until
the aggregator has shown it with whom it is to be summed (``privacy.secure_aggregation``).
"""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Context, Message
from flwr.clientapp.typing import ClientAppCallable, Mod

from fedlora.adapter import AdapterUpdate
from fedlora.errors import PolicyError, WireError
from fedlora.privacy.secure_aggregation.participant import Participant
from fedlora.privacy.secure_aggregation.statements import read
from fedlora.runtime import records
from fedlora.runtime.account import noise_stream
from fedlora.runtime.fixed_point import fixed_point_of
from fedlora.runtime.secure_terms import STAGES, context_of, terms_of
from fedlora.runtime.site.asked import Asked
from fedlora.runtime.site.memory import SiteMemory
from fedlora.runtime.site.outbox import Outbox
from fedlora.runtime.site.summed import Summed
from fedlora.secure_sum.v1 import secure_sum_pb2 as pb
from fedlora.signing import PublicKey, Signer
from fedlora.wire.codec import Envelope, decode_update


class Identity(Protocol):
    """Who a site is to its peers, and with whom it lets itself be summed."""

    @property
    def signer(self) -> Signer:
        """The site's own key."""

    def identify(self, site: str, key: PublicKey) -> None:
        """Do nothing if a peer is known by that key.

        Raises:
            PolicyError: it is not.
        """

    def admit(self, members: Collection[str], last: Collection[str]) -> None:
        """Do nothing if the site may be summed with exactly these.

        Args:
            members: the site itself among them.
            last: those of the last sum that the site was in, in whatever run; none before it.

        Raises:
            PolicyError: it may not.
        """


@dataclass(frozen=True)
class _Attempt:
    """A round's attempt, and the update that is to be masked."""

    recipe: str
    """Digest of the recipe that was trained by: a stage of another's would write the update on
    another scale than the others, or without its noise."""
    envelope: Envelope
    participant: Participant
    answer: str
    """Where the update lies in the outbox."""
    update: str
    """SHA-256 of its values."""


_attempts: dict[tuple[str, str], _Attempt] = {}
"""The last attempt of each site and run. Whoever is started anew has dropped out."""


def held_back(identity: Identity | None = None) -> Mod:
    """Return what answers an instruction to train with fresh keys in place of the update.

    Args:
        identity: who the site is; by default, in a simulation, a key of this process.

    Raises:
        SummedError: (the mod) the update is in a sum, and another would have other noise.
    """

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        asked = Asked.of(message, context)
        if not asked.recipe.privacy.secure_aggregation or asked.purpose != "train":
            return call_next(message, context)
        inspected = call_next(message, context)  # it is in the outbox, too
        summed, answer = Summed(asked.site), Outbox.name_of(message)
        update = _digest(_decoded(asked, records.unpack(inspected.content)))
        if asked.recipe.privacy.unit == "client":
            summed.require_none(update)
        who = identity or Simulated(asked.site)
        participant = Participant(
            site=asked.site,
            signer=who.signer,
            terms=terms_of(asked.recipe),
            context=context_of(
                asked.recipe, asked.envelope, payload=records.unpack(message.content)
            ),
            identify=who.identify,
            admit=lambda members: who.admit(members, summed.last()),
        )
        said = participant.advertise()
        _attempts[asked.site, asked.envelope.run] = _Attempt(
            asked.recipe.digest, asked.envelope, participant, answer, update
        )
        return _reply(said.SerializeToString(), message)

    return mod


def answer_stage(message: Message, context: Context) -> Message:
    """Answer a stage of the attempt that the site has advertised for.

    Raises:
        WireError: there is no such attempt, or no such stage.
        SecureSumError: what came is not what the stage expects.
        PolicyError: the site is not to be summed with those that are named.
    """
    asked, stage = Asked.of(message, context), stage_of(message)
    key = asked.site, asked.envelope.run
    attempt = _attempts.get(key)
    this = asked.recipe.digest, asked.envelope
    if attempt is None or (attempt.recipe, attempt.envelope) != this:
        raise WireError(
            f"{stage} is asked for round {asked.envelope.round}, but the site has no keys for it: "
            "it has not trained by this recipe, or was started anew since."
        )
    try:
        payload = records.unpack(message.content)
        return _reply(_answered(asked, attempt, stage=stage, payload=payload), message)
    except Exception:
        _attempts.pop(key, None)  # nothing follows a stage that failed: its secrets end with it
        raise


def _answered(asked: Asked, attempt: _Attempt, *, stage: str, payload: bytes) -> bytes:
    participant = attempt.participant

    def keep(members: Collection[str]) -> None:
        summed = Summed(asked.site)
        summed.keep(attempt.update, context=participant.context, members=members)

    match stage:
        case "share":
            return participant.share(read(pb.Roster, payload)).SerializeToString()
        case "mask":
            return _masked(asked, attempt, read(pb.Inbox, payload))
        case "sign":
            survivors = read(pb.Survivors, payload)
            signature = participant.sign(survivors)
            keep(survivors.sites)
            return signature.SerializeToString()
    unmasking = read(pb.Unmasking, payload)
    revealed = participant.reveal(unmasking)
    keep(unmasking.survivors.sites)
    del _attempts[asked.site, asked.envelope.run]
    return revealed.SerializeToString()


def stage_of(message: Message) -> str:
    """Return which stage an instruction asks for; nothing if it is none.

    Raises:
        WireError: it is unknown.
    """
    purpose, _, stage = message.metadata.message_type.partition(".")
    if stage and (purpose != "train" or stage not in STAGES):
        raise WireError(f"{message.metadata.message_type!r:.80} is no stage of a secure sum.")
    return stage


def _masked(asked: Asked, attempt: _Attempt, inbox: pb.Inbox) -> bytes:
    """Return the update that the gate let pass, as whole numbers, noised and masked."""
    outbox = Outbox(SiteMemory(asked.site, asked.envelope.run))
    update = _decoded(asked, outbox.payload(attempt.answer))
    fixed = fixed_point_of(asked.recipe)
    noise = noise_stream(asked.recipe, f"secure sum/{asked.site}/{asked.envelope.round}")
    weight = min(update.num_examples, fixed.weights_up_to)
    values = fixed.encode(update.values, weight=weight, bits=noise.bits)
    attempt.participant.mask(inbox, values)
    return values.astype("<u4", copy=False).tobytes()


def _decoded(asked: Asked, payload: bytes) -> AdapterUpdate:
    """Return the update that is held back."""
    return decode_update(
        payload,
        records.envelope_of_update(asked.envelope, asked.recipe, asked.site),
        codec="fp32",
        compress=False,
        max_bytes=asked.recipe.wire.max_bytes,
    )


def _digest(update: AdapterUpdate) -> str:
    return hashlib.sha256(update.values.numpy().data).hexdigest()


def _reply(payload: bytes, message: Message) -> Message:
    return Message(records.reply({}, payload=payload), reply_to=message)


class Simulated:
    """A site of a simulation: all of them are in this process, and know each other."""

    def __init__(self, site: str) -> None:
        self.signer = _simulated_signer(site)

    def identify(self, site: str, key: PublicKey) -> None:
        if _simulated_signer(site).public != key:
            raise PolicyError(f"{site} is another.")

    def admit(self, members: Collection[str], last: Collection[str]) -> None:
        """Simulated sites have no policy."""


@cache
def _simulated_signer(site: str) -> Signer:  # noqa: ARG001 - one for each
    return Signer(Ed25519PrivateKey.generate())
