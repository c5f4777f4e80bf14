"""A site's part in one attempt at a secure sum."""

import secrets
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedlora.errors import SecureSumError
from fedlora.privacy.secure_aggregation import shamir, statements
from fedlora.privacy.secure_aggregation.masks import add_mask, subtract_mask
from fedlora.privacy.secure_aggregation.primitives import KeyPair, seal, unseal
from fedlora.privacy.secure_aggregation.terms import Terms
from fedlora.secure_sum.v1 import secure_sum_pb2 as pb
from fedlora.signing import PublicKey, Signer

Identify = Callable[[str, PublicKey], None]
"""Does nothing if a site is known by that key, else raises an error."""

Admit = Callable[[Collection[str]], None]
"""Does nothing if the site lets itself be summed with exactly those, else raises an error."""

_Asked = ParamSpec("_Asked")
_Answer = TypeVar("_Answer")


def _stage(
    play: Callable[Concatenate["Participant", _Asked], _Answer],
) -> Callable[Concatenate["Participant", _Asked], _Answer]:
    """Let a stage be played once, after those before it; one that fails is the attempt's last."""

    @wraps(play)
    def played(self: "Participant", /, *args: _Asked.args, **kwargs: _Asked.kwargs) -> _Answer:
        ahead = self._ahead
        if play.__name__ not in ahead[:1]:
            raise SecureSumError(
                f"{play.__name__} was asked, but of this attempt there is "
                f"{ahead[0] if ahead else 'nothing'} to be played next."
            )
        self._ahead = ()
        answer = play(self, *args, **kwargs)
        self._ahead = ahead[1:]
        return answer

    return played


@dataclass(kw_only=True)
class Participant:
    """One site in one attempt. Its secrets are in memory: who is started anew has dropped out.

    Guarantees:
        - Each stage is played once, in order; nothing follows one that failed.
        - The seed of its own mask or the key of its pairwise masks may become known, never both:
          of each other member it reveals a share of one of them, once, and it seals its own shares
          for members that it knows by their pinned keys.
        - It shares nothing unless all members have signed the same context: recipe, base, received
          adapter, run and round (Pasquini et al. 2022, arXiv:2111.07380, section 4.1).
        - It reveals nothing unless, where ``terms.signed``, as many members as ``terms.threshold``
          have signed the very survivors that it is told of.
    """

    site: str
    signer: Signer
    terms: Terms
    context: bytes
    """SHA-256 of what is summed."""
    identify: Identify
    admit: Admit
    _mask_key: KeyPair = field(default_factory=KeyPair.generate, repr=False)
    _seal_key: KeyPair = field(default_factory=KeyPair.generate, repr=False)
    _seed: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)
    _ahead: tuple[str, ...] = ()
    """Stages that may still be played."""
    _members: dict[str, pb.Advertisement] = field(default_factory=dict)
    _digest: bytes = b""
    _held: dict[str, tuple[bytes, bytes]] = field(default_factory=dict, repr=False)
    """Of each member whose shares this site has: that of the seed, and that of the mask key."""
    _survivors: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        sign = ("sign",) if self.terms.signed else ()
        self._ahead = ("advertise", "share", "mask", *sign, "reveal")

    @property
    def attempt(self) -> str:
        """What names the attempt, in hexadecimal, once there is a roster."""
        return self._digest.hex()

    @_stage
    def advertise(self) -> pb.Advertisement:
        """Return the site's fresh keys, signed."""
        self._own = statements.advertised(
            self.signer,
            site=self.site,
            context=self.context,
            mask_key=self._mask_key.public,
            seal_key=self._seal_key.public,
            seed=self._seed,
        )
        return self._own

    @_stage
    def share(self, roster: pb.Roster) -> pb.Shares:
        """Return shares of the site's secrets, sealed for each other member of its roster.

        Raises:
            SecureSumError: the roster is not one that this site can be part of.
            PolicyError: a member is not known by its key, or the site's policy wants others.
        """
        self._require_roster(roster)
        holders = sorted(self._members)
        split = [
            shamir.split(secret, threshold=self.terms.threshold, holders=len(holders))
            for secret in (self._seed, self._mask_key.private)
        ]
        shares = dict(zip(holders, zip(*split, strict=True), strict=True))
        self._held[self.site] = shares.pop(self.site)
        return pb.Shares(
            sealed=[
                pb.Sealed(site=site, text=self._sealed(site, seed + key))
                for site, (seed, key) in shares.items()
            ]
        )

    @_stage
    def mask(self, inbox: pb.Inbox, values: NDArray[np.uint32]) -> None:
        """Mask a vector in place, modulo 2³²: with the site's own mask, and one for each sender.

        A vector that was masked is nothing to anybody who knows neither the seed nor, but for one,
        the keys of its pairs.

        Raises:
            SecureSumError: shares are not from members, or not what they sealed; too few came.
        """
        for each in inbox.sealed:
            if each.site not in self._members or each.site in self._held:
                raise SecureSumError(f"{each.site!r:.80} is no member, or has sent shares twice.")
            shares = self._unsealed(each.site, each.text)
            self._held[each.site] = shares[: shamir.SHARE_BYTES], shares[shamir.SHARE_BYTES :]
        self.terms.require_enough(len(self._held), of="have shared their secrets")
        for site in self._held:
            if site != self.site:
                key = self._pair_key(site)
                (add_mask if self.site < site else subtract_mask)(values, key)
        add_mask(values, self._seed)

    @_stage
    def sign(self, survivors: pb.Survivors) -> pb.Signature:
        """Return the site's word for the survivors, which it gives once.

        Raises:
            SecureSumError: they are not among those who shared, too few, or without this site.
            PolicyError: the site's policy wants others.
        """
        self._take(survivors)
        text = statements.survivors_text(self._digest, self._survivors)
        return pb.Signature(site=self.site, signature=self.signer.sign(text))

    @_stage
    def reveal(self, unmasking: pb.Unmasking) -> pb.Revealed:
        """Return a share of each survivor's seed, and of the mask key of who has dropped out.

        Raises:
            SecureSumError: as ``sign``; or too few have signed the survivors, or this site has
                signed others.
            PolicyError: the site's policy wants others.
        """
        told = tuple(unmasking.survivors.sites)
        if self.terms.signed:
            if told != self._survivors:
                raise SecureSumError("The survivors are not those that this site has signed.")
            self._require_signed(statements.signatures_of(unmasking))
        else:
            self._take(unmasking.survivors)
        revealed = pb.Revealed()
        for site, (seed, key) in sorted(self._held.items()):
            if site in told:
                revealed.seeds.append(pb.Share(site=site, share=seed))
            else:
                revealed.mask_keys.append(pb.Share(site=site, share=key))
        return revealed

    def _require_roster(self, roster: pb.Roster) -> None:
        members = {member.site: member for member in roster.members}
        if len(members) < len(roster.members) or members.get(self.site) != self._own:
            raise SecureSumError("The roster names a site twice, or this site by another key.")
        if len(members) > (most := self._most):
            raise SecureSumError(f"The roster has {len(members)} members; at most {most} may be.")
        identities: Mapping[str, PublicKey] = {
            site: statements.require_signed(member) for site, member in members.items()
        }
        for site, key in identities.items():
            if site != self.site:
                self.identify(site, key)
            if members[site].context != self.context:
                raise SecureSumError(
                    f"{site} was given another recipe, base model, adapter or round than this site."
                )
        if len(set(identities.values())) < len(members):
            raise SecureSumError("Two members of the roster have one key.")
        self.terms.require_enough(len(members), of="are in the roster")
        self._members = members
        self._digest = statements.roster_digest(roster.members) if self._all_seen else roster.digest

    @property
    def _most(self) -> int:
        return self.terms.members if self.terms.degree is None else self.terms.degree + 1

    @property
    def _all_seen(self) -> bool:
        """Whether this site is shown all members, rather than its neighbours."""
        return self.terms.degree is None

    def _take(self, survivors: pb.Survivors) -> None:
        sites = tuple(survivors.sites)
        own = self.site in sites and sites == tuple(sorted(set(sites)))
        if not own or not self._held.keys() >= set(sites):
            raise SecureSumError(
                "The survivors must be sites that have shared their secrets, this one among them, "
                "in order, each once."
            )
        self.terms.require_enough(len(sites), of="have sent a masked vector")
        if self._all_seen:
            self.admit(sites)
        self._survivors = sites

    def _require_signed(self, signatures: Mapping[str, bytes]) -> None:
        text = statements.survivors_text(self._digest, self._survivors)
        signed = [
            site
            for site, signature in signatures.items()
            if site in self._survivors
            and PublicKey(self._members[site].identity).signed(text, signature)
        ]
        if len(signed) < self.terms.threshold:
            raise SecureSumError(
                f"{len(signed)} members have signed the survivors, but {self.terms.threshold} must."
            )

    def _pair_key(self, site: str) -> bytes:
        about = statements.masked_about(self._digest, self.site, site)
        return self._mask_key.agree(self._members[site].mask_key, about=about)

    def _sealed(self, site: str, shares: bytes) -> bytes:
        about = statements.sealed_about(self._digest, sender=self.site, receiver=site)
        key = self._seal_key.agree(self._members[site].seal_key, about=about)
        return seal(key, shares, about=about)

    def _unsealed(self, site: str, text: bytes) -> bytes:
        about = statements.sealed_about(self._digest, sender=site, receiver=self.site)
        key = self._seal_key.agree(self._members[site].seal_key, about=about)
        try:
            shares = unseal(key, text, about=about)
        except SecureSumError as error:
            raise SecureSumError(f"The shares of {site} are broken: {error}") from None
        if len(shares) != 2 * shamir.SHARE_BYTES:
            raise SecureSumError(f"The shares of {site} are broken: {len(shares)} bytes.")
        return shares
