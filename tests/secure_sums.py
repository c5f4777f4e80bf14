"""Attempts at a secure sum, played in this process, with losses and lies at any stage."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from fedlora.errors import PolicyError
from fedlora.privacy.secure_aggregation.collector import Collector
from fedlora.privacy.secure_aggregation.participant import Participant
from fedlora.privacy.secure_aggregation.terms import Terms
from fedlora.secure_sum.v1 import secure_sum_pb2 as pb
from fedlora.signing import PublicKey, Signer

CONTEXT = bytes(range(32))


def new_signer() -> Signer:
    """Return a site's identity."""
    return Signer(Ed25519PrivateKey.generate())


def terms_for(members: int, **changes: object) -> Terms:
    """Return terms against an aggregator that lies, at the usual threshold."""
    threshold = 2 * members // 3 + 1
    facts = {
        "fewest": threshold,
        "colluders": max(0, min(2 * threshold - members - 1, threshold - 1)),
        "signed": True,
    }
    return Terms(**{"members": members, "threshold": threshold, **facts, **changes})  # type: ignore[arg-type] # as the fields


@dataclass
class Pinned:
    """Whom a site knows."""

    keys: Mapping[str, PublicKey]

    def __call__(self, site: str, key: PublicKey) -> None:
        if self.keys.get(site) != key:
            raise PolicyError(f"{site} is not known by this key.")


def anybody(_members: Collection[str]) -> None:
    """Let a site be summed with anybody."""


@dataclass
class Cohort:
    """Sites and an aggregator in one attempt; each stage can be played, or interfered with."""

    vectors: Mapping[str, NDArray[np.uint32]]
    terms: Terms
    context: Callable[[str], bytes] = lambda _site: CONTEXT
    signers: dict[str, Signer] = field(default_factory=dict)
    participants: dict[str, Participant] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.signers = self.signers or {site: new_signer() for site in self.vectors}
        known = Pinned({site: signer.public for site, signer in self.signers.items()})
        for site in self.vectors:
            self.participants[site] = Participant(
                site=site,
                signer=self.signers[site],
                terms=self.terms,
                context=self.context(site),
                identify=known,
                admit=anybody,
            )
        size = len(next(iter(self.vectors.values())))
        self.collector = Collector(terms=self.terms, size=size)

    def advertise(self, *, without: Collection[str] = ()) -> Mapping[str, pb.Roster]:
        """Play the first stage; return what begins the second."""
        for site in set(self.vectors) - set(without):
            said = self.participants[site].advertise()
            self.collector.take_advertisement(site, said)
        return self.collector.rosters()

    def share(
        self, rosters: Mapping[str, pb.Roster], *, without: Collection[str] = ()
    ) -> Mapping[str, pb.Inbox]:
        """Play the second stage; return what begins the third."""
        for site in rosters.keys() - set(without):
            self.collector.take_shares(site, self.participants[site].share(rosters[site]))
        return self.collector.inboxes()

    def mask(
        self, inboxes: Mapping[str, pb.Inbox], *, without: Collection[str] = ()
    ) -> Mapping[str, pb.Survivors]:
        """Play the third stage; return what begins the fourth."""
        for site in inboxes.keys() - set(without):
            self.collector.take_masked(site, self.masked(site, inboxes[site]))
        return self.collector.survivors_for()

    def masked(self, site: str, inbox: pb.Inbox) -> bytes:
        """Return what a site sends in the third stage."""
        vector = self.vectors[site].copy()
        self.participants[site].mask(inbox, vector)
        return vector.tobytes()

    def sign(
        self, survivors: Mapping[str, pb.Survivors], *, without: Collection[str] = ()
    ) -> Mapping[str, pb.Unmasking]:
        """Play the fourth stage, if there is one; return what begins the last."""
        if self.terms.signed:
            for site in survivors.keys() - set(without):
                said = self.participants[site].sign(survivors[site])
                self.collector.take_signature(site, said)
        return self.collector.unmaskings()

    def reveal(
        self, unmaskings: Mapping[str, pb.Unmasking], *, without: Collection[str] = ()
    ) -> NDArray[np.uint32]:
        """Play the last stage; return the sum."""
        for site in unmaskings.keys() - set(without):
            self.collector.take_revealed(site, self.participants[site].reveal(unmaskings[site]))
        return self.collector.total()

    def total(self, lost: Mapping[str, str] | None = None) -> NDArray[np.uint32]:
        """Play an attempt in which sites are lost: by site, in which stage."""
        lost = lost or {}

        def gone(stage: str) -> set[str]:
            return {site for site, when in lost.items() if when == stage}

        inboxes = self.share(self.advertise(without=gone("advertise")), without=gone("share"))
        survivors = self.mask(inboxes, without=gone("mask"))
        return self.reveal(
            self.sign(survivors, without=gone("sign") | gone("reveal")),
            without=gone("sign") | gone("reveal"),
        )
