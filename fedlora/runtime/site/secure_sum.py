"""A site's part in secure sums: what the gate let pass is masked, and its shares revealed once.

A site that has trained answers with fresh keys in place of its update, and holds that back until
the aggregator has shown it with whom it is to be summed (``privacy.secure_aggregation``).
"""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Context, Message
from flwr.clientapp.typing import ClientAppCallable, Mod
from pydantic import TypeAdapter

from fedlora import atomic
from fedlora.adapter import AdapterUpdate
from fedlora.errors import PolicyError, StorageError, SummedError, WireError
from fedlora.privacy.secure_aggregation.participant import Participant
from fedlora.privacy.secure_aggregation.statements import read
from fedlora.runtime import records
from fedlora.runtime.account import noise_stream
from fedlora.runtime.fixed_point import fixed_point_of
from fedlora.runtime.secure_terms import REVEALED, STAGES, context_of, terms_of
from fedlora.runtime.site.asked import Asked
from fedlora.runtime.site.memory import SiteMemory, site_folder
from fedlora.runtime.site.outbox import Outbox
from fedlora.sections import Digest
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
            last: those of the run's last sum; none before it.

        Raises:
            PolicyError: it may not.
        """


_SUMS = TypeAdapter(dict[Digest, list[str]])


@dataclass(frozen=True)
class Summed:
    """The sums that a site has revealed its shares for, in whatever run: on disk before it does.

    Two sums with one update in both, over different members, tell the difference of these. So an
    update that is in one sum is in no other, but over the same members: that is the same sum.
    """

    site: str

    def require_same(self, update: str, members: Collection[str]) -> None:
        """Do nothing if an update is in no sum yet, or in one over exactly these members.

        Args:
            update: SHA-256 of its values.
            members: of the sum that is to be.

        Raises:
            SummedError: it is in another.
            StorageError: the record cannot be read.
        """
        before = self._all().get(update)
        if before is not None and set(before) != set(members):
            raise SummedError(REVEALED)

    def require_none(self, update: str) -> None:
        """Do nothing if an update is in no sum: of fresh noise not even the same sum is the same.

        Raises:
            SummedError: it is in one.
            StorageError: the record cannot be read.
        """
        if update in self._all():
            raise SummedError(REVEALED)

    def keep(self, update: str, members: Collection[str]) -> None:
        """Note that the site reveals its shares.

        Raises:
            SummedError: as ``require_same``.
            StorageError: the record cannot be read or written.
        """
        self.require_same(update, members)
        facts = {**self._all(), update: sorted(members)}
        atomic.write_file(self._path, _SUMS.dump_json(facts, indent=1))

    def last(self) -> Collection[str]:
        """Return the members of the last sum; none before the first.

        Raises:
            StorageError: the record cannot be read.
        """
        return next(reversed(self._all().values()), ())

    @property
    def _path(self) -> Path:
        return site_folder(self.site) / "summed.json"

    def _all(self) -> dict[str, list[str]]:
        """Return the members of each sum by the site's update, the last one last."""
        try:
            return _SUMS.validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise StorageError(
                f"{self._path}: the sums that the site has been in cannot be read ({error}). Put "
                "the file back from a backup: without it, nothing is summed."
            ) from None


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
        call_next(message, context)  # what was inspected is in the outbox now
        summed, answer = Summed(asked.site), Outbox.name_of(message)
        update = _digest(_held_update(asked, answer))
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
    payload, participant = records.unpack(message.content), attempt.participant
    match stage:
        case "share":
            return _reply(participant.share(read(pb.Roster, payload)).SerializeToString(), message)
        case "mask":
            return _reply(_masked(asked, attempt, read(pb.Inbox, payload)), message)
        case "sign":
            survivors = read(pb.Survivors, payload)
            Summed(asked.site).require_same(attempt.update, survivors.sites)
            return _reply(participant.sign(survivors).SerializeToString(), message)
    unmasking = read(pb.Unmasking, payload)
    revealed = participant.reveal(unmasking)
    Summed(asked.site).keep(attempt.update, unmasking.survivors.sites)
    del _attempts[key]
    return _reply(revealed.SerializeToString(), message)


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
    update, fixed = _held_update(asked, attempt.answer), fixed_point_of(asked.recipe)
    noise = noise_stream(asked.recipe, f"secure sum/{asked.site}/{asked.envelope.round}")
    weight = min(update.num_examples, fixed.weights_up_to)
    values = fixed.encode(update.values, weight=weight, bits=noise.bits)
    attempt.participant.mask(inbox, values)
    return values.astype("<u4", copy=False).tobytes()


def _held_update(asked: Asked, answer: str) -> AdapterUpdate:
    """Return the update that is held back."""
    memory = SiteMemory(asked.site, asked.envelope.run)
    envelope = records.envelope_of_update(asked.envelope, asked.recipe, asked.site)
    return decode_update(
        Outbox(memory).payload(answer),
        envelope,
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
