"""One attempt at a secure sum, all its members in one process, up to the large vectors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.message import Message
from numpy.typing import NDArray

from fedlora.privacy.secure_aggregation.collector import Collector
from fedlora.privacy.secure_aggregation.participant import Participant
from fedlora.privacy.secure_aggregation.terms import Terms
from fedlora.secure_sum.v1 import secure_sum_pb2 as pb
from fedlora.signing import Signer


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """Members who have shared their secrets, under the threat model of a malicious aggregator."""

    members: Sequence[Participant]
    collector: Collector
    inboxes: Mapping[str, pb.Inbox]
    said: list[Message]
    """What the first member has sent so far but for its vector."""
    heard: list[Message]
    """And what it has received."""

    @classmethod
    def ready(cls, clients: int, *, size: int) -> Self:
        """Return an attempt at the sum of vectors of so many values.

        Args:
            clients: how many there are; none has dropped out yet.
            size: values of a vector, its weight among them.
        """
        threshold = 2 * clients // 3 + 1
        terms = Terms(
            members=clients,
            threshold=threshold,
            fewest=threshold,
            colluders=2 * threshold - clients - 1,
            signed=True,
        )
        members = [member_of(f"site-{place}", terms) for place in range(clients)]
        collector = Collector(terms=terms, context=bytes(32), size=size)
        advertised = [member.advertise() for member in members]
        for member, advertisement in zip(members, advertised, strict=True):
            collector.take_advertisement(member.site, advertisement)
        rosters = collector.rosters()
        shares = [member.share(rosters[member.site]) for member in members]
        for member, share in zip(members, shares, strict=True):
            collector.take_shares(member.site, share)
        inboxes = collector.inboxes()
        first = members[0].site
        return cls(
            members=members,
            collector=collector,
            inboxes=inboxes,
            said=[advertised[0], shares[0]],
            heard=[rosters[first], inboxes[first]],
        )

    def masked(self, vector: NDArray[np.uint32], *, client: int = 0) -> bytes:
        """Return the bytes of a client's vector, which is masked in place."""
        member = self.members[client]
        member.mask(self.inboxes[member.site], vector)
        return vector.tobytes()

    def total(self, payloads: Sequence[bytes]) -> NDArray[np.uint32]:
        """Return the sum of what the first clients have sent; the others have dropped out."""
        survivors = self.members[: len(payloads)]
        for member, payload in zip(survivors, payloads, strict=True):
            self.collector.take_masked(member.site, payload)
        told = self.collector.survivors_for()
        signed = [member.sign(told[member.site]) for member in survivors]
        for member, signature in zip(survivors, signed, strict=True):
            self.collector.take_signature(member.site, signature)
        unmaskings = self.collector.unmaskings()
        revealed = [member.reveal(unmaskings[member.site]) for member in survivors]
        for member, shares in zip(survivors, revealed, strict=True):
            self.collector.take_revealed(member.site, shares)
        first = survivors[0].site
        self.said.extend((signed[0], revealed[0]))
        self.heard.extend((told[first], unmaskings[first]))
        return self.collector.total()


def member_of(site: str, terms: Terms) -> Participant:
    """Return a client who knows all others, whatever their keys."""
    return Participant(
        site=site,
        signer=Signer(Ed25519PrivateKey.generate()),
        terms=terms,
        context=bytes(32),
        identify=lambda _, __: None,
        admit=lambda _: None,
    )
