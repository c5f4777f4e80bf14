"""Attempts at a secure sum, played in this process, with losses and lies at any stage."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.message import Message
from numpy.typing import NDArray

from fedlora.errors import FedloraError, PolicyError, SecureSumError
from fedlora.privacy.secure_aggregation.collector import Collector
from fedlora.privacy.secure_aggregation.participant import Participant
from fedlora.privacy.secure_aggregation.statements import read
from fedlora.privacy.secure_aggregation.terms import Terms
from fedlora.secure_sum.v1 import secure_sum_pb2 as pb
from fedlora.signing import PublicKey, Signer

CONTEXT = bytes(range(32))
STAGES = ("advertise", "share", "mask", "sign", "reveal")

Vector = NDArray[np.uint32]

Change = Callable[[str, str, bytes], bytes | None]
"""What comes of an answer, by stage and site; nothing if it is lost."""
Tell = Callable[[str, Message | None], Message | None]
"""What a site is told in place of what it should be."""


def new_signer() -> Signer:
    """Return a site's identity."""
    return Signer(Ed25519PrivateKey.generate())


def new_vectors(members: int, *, size: int, generator: np.random.Generator) -> dict[str, Vector]:
    """Return what each of so many sites has, ``(size,)``."""
    return {
        f"site-{number:04}": generator.integers(2**32, size=size, dtype=np.uint32)
        for number in range(members)
    }


def plain_sum(vectors: Mapping[str, Vector], sites: Collection[str]) -> Vector:
    """Return the sum of some sites' vectors, without any secrecy."""
    total = np.zeros_like(next(iter(vectors.values())))
    for site in sites:
        total += vectors[site]
    return total


def terms_for(members: int, **changes: int | bool | None) -> Terms:
    """Return terms against an aggregator that lies, at the usual threshold."""
    threshold = int(changes.get("threshold") or 2 * members // 3 + 1)
    facts = {
        "threshold": threshold,
        "fewest": threshold,
        "colluders": max(0, min(2 * threshold - members - 1, threshold - 1)),
        "signed": True,
    }
    return Terms(**{"members": members, **facts, **changes})  # type: ignore[arg-type] # as the fields


def losing(lost: Mapping[str, str]) -> Change:
    """Lose the answers of sites: by site, in which stage."""
    return lambda stage, site, answer: None if lost.get(site) == stage else answer


def nothing_changes(_stage: str, _site: str, answer: bytes) -> bytes:
    """Let each answer arrive as it was sent."""
    return answer


def the_truth(_site: str, message: Message | None) -> Message | None:
    """Tell each site what it should be told."""
    return message


@dataclass
class Pinned:
    """Whom a site knows."""

    keys: Mapping[str, PublicKey]

    def __call__(self, site: str, key: PublicKey) -> None:
        """Do nothing if a site is known by the key."""
        if self.keys.get(site) != key:
            raise PolicyError(f"{site} is not known by this key.")


def anybody(_members: Collection[str]) -> None:
    """Let a site be summed with anybody."""


@dataclass
class Cohort:
    """Sites and an aggregator in one attempt; each stage can be played, or interfered with.

    As in ``runtime``, whose answer is an error or no good is lost.
    """

    vectors: Mapping[str, Vector]
    terms: Terms
    context: Callable[[str], bytes] = lambda _site: CONTEXT
    change: Change = nothing_changes
    tell: Tell = the_truth
    signers: dict[str, Signer] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)
    """By site the stage in which it was lost, and why."""
    rosters: dict[str, pb.Roster] = field(default_factory=dict)
    """With whom each site shares its secrets."""
    inboxes: dict[str, pb.Inbox] = field(default_factory=dict)
    """From whom each site had shares when it masked its vector."""
    masked: dict[str, Vector] = field(default_factory=dict)
    """What each site sent in the third stage, be it in time or not."""
    revealed: dict[str, pb.Revealed] = field(default_factory=dict)
    """What each site sent in the last stage."""

    def __post_init__(self) -> None:
        self.signers = self.signers or {site: new_signer() for site in self.vectors}
        known = Pinned({site: signer.public for site, signer in self.signers.items()})
        self.participants = {
            site: Participant(
                site=site,
                signer=self.signers[site],
                terms=self.terms,
                context=self.context(site),
                identify=known,
                admit=anybody,
            )
            for site in self.vectors
        }
        size = len(next(iter(self.vectors.values())))
        self.collector = Collector(terms=self.terms, context=CONTEXT, size=size)

    def total(self) -> Vector:
        """Play all stages; return the sum.

        Raises:
            SecureSumError: there is none.
        """
        return self.reveal(self.sign(self.mask(self.share(self.advertise()))))

    def advertise(self) -> Mapping[str, pb.Roster]:
        """Play the first stage; return what begins the second."""
        self._play("advertise", dict.fromkeys(self.vectors), self._advertised)
        return self.collector.rosters()

    def share(self, rosters: Mapping[str, pb.Roster]) -> Mapping[str, pb.Inbox]:
        """Play the second stage; return what begins the third."""
        self._play("share", rosters, self._shared)
        return self.collector.inboxes()

    def mask(self, inboxes: Mapping[str, pb.Inbox]) -> Mapping[str, pb.Survivors]:
        """Play the third stage; return what begins the fourth."""
        self._play("mask", inboxes, self.collector.take_masked)
        return self.collector.survivors_for()

    def sign(self, survivors: Mapping[str, pb.Survivors]) -> Mapping[str, pb.Unmasking]:
        """Play the fourth stage, if there is one; return what begins the last."""
        if self.terms.signed:
            self._play("sign", survivors, self._signed)
        return self.collector.unmaskings()

    def reveal(self, unmaskings: Mapping[str, pb.Unmasking]) -> Vector:
        """Play the last stage; return the sum."""
        self._play("reveal", unmaskings, self._revealed)
        return self.collector.total()

    def answer(self, site: str, told: Message | None) -> bytes:
        """Return what a site answers to what begins a stage.

        Raises:
            SecureSumError: as ``Participant``.
            PolicyError: as ``Participant``.
        """
        participant = self.participants[site]
        match told:
            case pb.Roster():
                shares = participant.share(told)
                self.rosters[site] = told
                return shares.SerializeToString()
            case pb.Inbox():
                vector = self.vectors[site].copy()
                participant.mask(told, vector)
                self.inboxes[site], self.masked[site] = told, vector
                return vector.tobytes()
            case pb.Survivors():
                return participant.sign(told).SerializeToString()
            case pb.Unmasking():
                self.revealed[site] = participant.reveal(told)
                return self.revealed[site].SerializeToString()
        return participant.advertise().SerializeToString()

    def _play(
        self,
        stage: str,
        told: Mapping[str, Message | None],
        take: Callable[[str, bytes], None],
    ) -> None:
        """Ask sites for their answers; take those that are some."""
        for site, message in told.items():
            try:
                answer = self.change(stage, site, self.answer(site, self.tell(site, message)))
                if answer is None:
                    raise SecureSumError("no answer")
                take(site, answer)
            except FedloraError as error:
                self.lost[site] = f"{stage}: {error}"

    def _advertised(self, site: str, answer: bytes) -> None:
        self.collector.take_advertisement(site, read(pb.Advertisement, answer))

    def _shared(self, site: str, answer: bytes) -> None:
        self.collector.take_shares(site, read(pb.Shares, answer))

    def _signed(self, site: str, answer: bytes) -> None:
        self.collector.take_signature(site, read(pb.Signature, answer))

    def _revealed(self, site: str, answer: bytes) -> None:
        self.collector.take_revealed(site, read(pb.Revealed, answer))
