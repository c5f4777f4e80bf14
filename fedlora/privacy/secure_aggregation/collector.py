"""The aggregator's part in one attempt at a secure sum."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedlora.errors import SecureSumError
from fedlora.privacy.secure_aggregation import shamir, statements
from fedlora.privacy.secure_aggregation.graph import neighbours
from fedlora.privacy.secure_aggregation.masks import add_mask, subtract_mask
from fedlora.privacy.secure_aggregation.primitives import KeyPair
from fedlora.privacy.secure_aggregation.terms import Terms
from fedlora.secure_sum.v1 import secure_sum_pb2 as pb
from fedlora.signing import PublicKey

_WORD = 4


@dataclass(kw_only=True)
class Collector:
    """Takes what members say, stage by stage, and unmasks the sum of those who came far enough.

    Of each stage the members are those who answered the one before. One vector is kept, whatever
    the number of members.

    Every ``take_…`` raises ``SecureSumError`` where an answer is not what the stage expects: then
    it counts as none. What begins a stage raises it where too few are left: nothing was revealed.
    """

    terms: Terms
    context: bytes
    """SHA-256 of what is summed, as each member must have signed it."""
    size: int
    """Values of a vector."""
    _advertised: dict[str, pb.Advertisement] = field(default_factory=dict)
    _neighbours: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Of each member those it shares masks and secrets with; fixed by ``rosters``."""
    _digest: bytes = b""
    _inboxes: dict[str, dict[str, bytes]] = field(default_factory=dict)
    _sharers: tuple[str, ...] = ()
    _sum: NDArray[np.uint32] | None = None
    _summed: list[str] = field(default_factory=list)
    _signatures: dict[str, bytes] = field(default_factory=dict)
    _seeds: dict[str, dict[int, bytes]] = field(default_factory=dict)
    _mask_keys: dict[str, dict[int, bytes]] = field(default_factory=dict)
    _revealed: set[str] = field(default_factory=set)

    @property
    def attempt(self) -> str:
        """What names the attempt, in hexadecimal."""
        return self._digest.hex()

    @property
    def survivors(self) -> tuple[str, ...]:
        """The members whose vectors are in the sum, sorted."""
        return tuple(sorted(self._summed))

    def take_advertisement(self, site: str, said: pb.Advertisement) -> None:
        """Take a site's keys; whether they are its own, the members see by themselves.

        With those that no member could be summed with, or two of which no roster may hold, one site
        would keep all others from their sum.
        """
        statements.require_signed(said)
        if said.site != site:
            raise SecureSumError(f"{site} advertises the keys of {said.site!r:.80}.")
        if said.context != self.context:
            raise SecureSumError(f"{site} signs another recipe, base, adapter or round.")
        known = {other.identity for other in self._advertised.values()}
        if site in self._advertised or said.identity in known:
            raise SecureSumError(f"{site}, or another site by its key, has advertised before.")
        probe = KeyPair.generate()
        for key in (said.mask_key, said.seal_key):
            probe.agree(key, about=b"")
        self._advertised[site] = said

    def rosters(self) -> Mapping[str, pb.Roster]:
        """Return each member's roster: all members, or it and its neighbours in a random graph."""
        members = self._advertised
        self.terms.require_enough(len(members), of="have trained", least=self.terms.fewest)
        sites = sorted(members)
        for site, others in zip(
            sites, neighbours(len(sites), degree=self.terms.degree), strict=True
        ):
            self._neighbours[site] = tuple(sites[other] for other in others)
        self._digest = statements.roster_digest(list(members.values()))
        return {
            site: pb.Roster(
                members=[members[each] for each in self._holders(site)], digest=self._digest
            )
            for site in sites
        }

    def take_shares(self, site: str, shares: pb.Shares) -> None:
        """Take a member's sealed shares, which only those whom they are for can open."""
        _require_turn(site, asked=self._neighbours, answered=self._sharers)
        sealed = {each.site: each.text for each in shares.sealed}
        if sealed.keys() != set(self._neighbours[site]) or len(sealed) < len(shares.sealed):
            raise SecureSumError(f"{site} has not sealed a share for each of its neighbours.")
        for other, text in sealed.items():
            self._inboxes.setdefault(other, {})[site] = text
        self._sharers = (*self._sharers, site)

    def inboxes(self) -> Mapping[str, pb.Inbox]:
        """Return for each member that has shared the shares of the others that have."""
        self.terms.require_enough(len(self._sharers), of="have shared their secrets")
        return {
            site: pb.Inbox(
                sealed=[
                    pb.Sealed(site=other, text=text)
                    for other, text in sorted(self._inboxes.get(site, {}).items())
                    if other in self._sharers
                ]
            )
            for site in sorted(self._sharers)
        }

    def take_masked(self, site: str, payload: bytes) -> None:
        """Add a member's masked vector to the sum."""
        _require_turn(site, asked=self._sharers, answered=self._summed)
        if len(payload) != _WORD * self.size:
            raise SecureSumError(
                f"{site} sent {len(payload):,} bytes in place of {_WORD * self.size:,}."
            )
        vector = np.frombuffer(payload, dtype="<u4")
        if self._sum is None:
            self._sum = vector.astype(np.uint32)
        else:
            np.add(self._sum, vector, out=self._sum)
        self._summed.append(site)

    def survivors_for(self, *, at_least: int = 0) -> Mapping[str, pb.Survivors]:
        """Return for each survivor the survivors that it is to know of: its neighbours, and it.

        Args:
            at_least: so many are wanted, even if the terms ask for fewer.
        """
        terms = self.terms
        least = max(terms.threshold, at_least)
        if terms.most_lost is not None:
            least = max(least, len(self._advertised) - terms.most_lost)
        terms.require_enough(len(self._summed), of="have sent a masked vector", least=least)
        return {site: pb.Survivors(sites=self._survivors_near(site)) for site in self.survivors}

    def take_signature(self, site: str, said: pb.Signature) -> None:
        """Take a member's word for the survivors."""
        _require_turn(site, asked=self._summed, answered=self._signatures)
        text = statements.survivors_text(self._digest, self.survivors)
        key = PublicKey(self._advertised[site].identity)
        if said.site != site or not key.signed(text, said.signature):
            raise SecureSumError(f"{site} has not signed the survivors.")
        self._signatures[site] = said.signature

    def unmaskings(self) -> Mapping[str, pb.Unmasking]:
        """Return what lets each survivor reveal its shares."""
        if self.terms.signed:
            self.terms.require_enough(len(self._signatures), of="have signed the survivors")
        signatures = [
            pb.Signature(site=site, signature=signature)
            for site, signature in sorted(self._signatures.items())
        ]
        return {
            site: pb.Unmasking(
                survivors=pb.Survivors(sites=self._survivors_near(site)), signatures=signatures
            )
            for site in self.survivors
        }

    def take_revealed(self, site: str, revealed: pb.Revealed) -> None:
        """Take a survivor's shares of others' secrets, and of its own seed."""
        _require_turn(site, asked=self._summed, answered=self._revealed)
        near = {other for other in self._holders(site) if other in self._sharers}
        seeds = {each.site: each.share for each in revealed.seeds}
        keys = {each.site: each.share for each in revealed.mask_keys}
        alive = near.intersection(self._summed)
        if seeds.keys() != alive or keys.keys() != near - alive:
            raise SecureSumError(
                f"{site} has not revealed one share for each member that it has shares of."
            )
        self._revealed.add(site)
        for found, shares in ((self._seeds, seeds), (self._mask_keys, keys)):
            for owner, share in shares.items():
                found.setdefault(owner, {})[self._holders(owner).index(site)] = share

    def total(self) -> NDArray[np.uint32]:
        """Return the sum of the survivors' vectors modulo 2³², ``(size,)``; to be called once.

        Raises:
            SecureSumError: too few shares came, or they do not fit what was advertised. What was
                revealed opens no single vector.
        """
        total = self._sum
        if total is None:
            raise SecureSumError("No member has sent a masked vector.")
        lost = [site for site in self._sharers if site not in self._summed]
        seeds = {
            site: self._opened(site, self._seeds, self._is_seed(site)) for site in self._summed
        }
        keys = {
            site: KeyPair.of(self._opened(site, self._mask_keys, self._is_mask_key(site)))
            for site in lost
            if any(other in self._summed for other in self._neighbours[site])
        }
        for seed in seeds.values():
            subtract_mask(total, seed)
        for site, pair in keys.items():
            for other in self._neighbours[site]:
                if other in self._summed:
                    about = statements.masked_about(self._digest, site, other)
                    key = pair.agree(self._advertised[other].mask_key, about=about)
                    (subtract_mask if other < site else add_mask)(total, key)
        return total

    def _holders(self, site: str) -> list[str]:
        """Return who has a share of a member's secrets, in the order of the shares."""
        return sorted((site, *self._neighbours[site]))

    def _survivors_near(self, site: str) -> list[str]:
        return [other for other in self._holders(site) if other in self._summed]

    def _opened(
        self, site: str, found: Mapping[str, Mapping[int, bytes]], fits: Callable[[bytes], bool]
    ) -> bytes:
        try:
            return shamir.join_fitting(
                found.get(site, {}), threshold=self.terms.threshold, fits=fits
            )
        except SecureSumError as error:
            raise SecureSumError(f"The secret of {site} cannot be opened: {error}") from None

    def _is_seed(self, site: str) -> Callable[[bytes], bool]:
        return lambda secret: statements.digest_of(secret) == self._advertised[site].seed_digest

    def _is_mask_key(self, site: str) -> Callable[[bytes], bool]:
        return lambda secret: KeyPair.of(secret).public == self._advertised[site].mask_key


def _require_turn(site: str, *, asked: Collection[str], answered: Collection[str]) -> None:
    """Do nothing if a stage waits for a site's answer: a second one would be added to the first."""
    if site not in asked or site in answered:
        raise SecureSumError(f"{site} was not asked in this stage, or has answered before.")
