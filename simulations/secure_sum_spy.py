"""What an aggregator that kept all, and the members who collude with it, can open of an attempt."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial

from fedlora.errors import SecureSumError
from fedlora.privacy.secure_aggregation import shamir, statements
from fedlora.privacy.secure_aggregation.masks import add_mask, subtract_mask
from fedlora.privacy.secure_aggregation.primitives import KeyPair
from fedlora.secure_sum.v1 import secure_sum_pb2 as pb
from simulations.secure_sums import Cohort, Vector, plain_sum

_Shares = dict[str, dict[str, bytes]]
"""By whose secret it is and who holds it."""


@dataclass(frozen=True, kw_only=True)
class Spy:
    """Reads what sites sent, and what colluders hold; takes no part itself."""

    cohort: Cohort
    colluders: Collection[str] = ()

    def sums(self) -> Mapping[frozenset[str], Vector]:
        """Return all that can be known of honest members' vectors: of which members, their sum.

        Honest members hang together by the masks between two of them that nobody else knows. Of
        those that do, the sum is known if all their own masks are, and each mask between two is in
        both their vectors; of fewer nothing is known.
        """
        seeds, keys = self.opened()
        masked = self.cohort.masked.keys() - set(self.colluders)
        hidden = {
            (site, other)
            for site in masked - keys.keys()
            for other in self._masked_with(site)
            if other not in keys
        }
        mutual = {(site, other) for site, other in hidden if (other, site) in hidden}
        never_open = {site for site, _ in hidden - mutual}
        return {
            together: self._sum(together, seeds, keys)
            for together in _parts(masked, mutual)
            if seeds.keys() >= together and not together & never_open
        }

    def _sum(
        self, sites: frozenset[str], seeds: Mapping[str, bytes], keys: Mapping[str, KeyPair]
    ) -> Vector:
        total = self.without_pairs(sites, keys)
        for site in sites:
            subtract_mask(total, seeds[site])
        return total

    def without_pairs(self, sites: frozenset[str], keys: Mapping[str, KeyPair]) -> Vector:
        """Return the sum of sites' masked vectors without their masks with others."""
        total = plain_sum(self.cohort.masked, sites)
        for site in sites:
            for other in self._masked_with(site):
                if other not in sites:
                    mine, theirs = (site, other) if site in keys else (other, site)
                    about = statements.masked_about(self._digest(site), site, other)
                    peer = self._advertised(site, theirs).mask_key
                    key = keys[mine].agree(peer, about=about)
                    (subtract_mask if site < other else add_mask)(total, key)
        return total

    def opened(self) -> tuple[Mapping[str, bytes], Mapping[str, KeyPair]]:
        """Return the seeds and the mask keys that are known, by whose they are."""
        seed_shares, key_shares = self._known()
        seeds, keys = {}, {}
        for site in self.cohort.rosters:
            said = self._advertised(site, site)
            if seed := self._joined(site, seed_shares, partial(_is_seed, said)):
                seeds[site] = seed
            if key := self._joined(site, key_shares, partial(_is_mask_key, said)):
                keys[site] = KeyPair.of(key)
        for site in self.colluders:
            keys[site] = self.cohort.participants[site]._mask_key  # noqa: SLF001 - it tells
        return seeds, keys

    def _known(self) -> tuple[_Shares, _Shares]:
        """Return the shares of seeds and of mask keys that were revealed, or are colluders'."""
        seeds, keys = _Shares(), _Shares()
        for holder, sent in self.cohort.revealed.items():
            for each in sent.seeds:
                seeds.setdefault(each.site, {})[holder] = each.share
            for each in sent.mask_keys:
                keys.setdefault(each.site, {})[holder] = each.share
        for holder in self.colluders:
            held = self.cohort.participants[holder]._held  # noqa: SLF001 - it tells all it knows
            for site, (seed, key) in held.items():
                seeds.setdefault(site, {})[holder] = seed
                keys.setdefault(site, {})[holder] = key
        return seeds, keys

    def _joined(self, site: str, shares: _Shares, fits: Callable[[bytes], bool]) -> bytes | None:
        holders = sorted(each.site for each in self.cohort.rosters[site].members)
        known = {holders.index(holder): share for holder, share in shares.get(site, {}).items()}
        try:
            return shamir.join_fitting(known, threshold=self.cohort.terms.threshold, fits=fits)
        except SecureSumError:
            return None

    def _advertised(self, site: str, other: str) -> pb.Advertisement:
        """Return what a site was told that another has advertised."""
        members = self.cohort.rosters[site].members
        return next(member for member in members if member.site == other)

    def _digest(self, site: str) -> bytes:
        return bytes.fromhex(self.cohort.participants[site].attempt)

    def _masked_with(self, site: str) -> list[str]:
        return [each.site for each in self.cohort.inboxes[site].sealed]


def _is_seed(said: pb.Advertisement, secret: bytes) -> bool:
    return statements.digest_of(secret) == said.seed_digest


def _is_mask_key(said: pb.Advertisement, secret: bytes) -> bool:
    return KeyPair.of(secret).public == said.mask_key


def _parts(sites: Collection[str], linked: Collection[tuple[str, str]]) -> list[frozenset[str]]:
    """Return the connected parts of a graph."""
    parts = {site: frozenset([site]) for site in sites}
    for one, other in linked:
        if parts[one] != parts[other]:
            both = parts[one] | parts[other]
            parts |= dict.fromkeys(both, both)
    return list(set(parts.values()))
