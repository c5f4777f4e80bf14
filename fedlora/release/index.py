"""The index of a name: its releases, where its aliases point, and what was revoked.

It is one document with a version and an expiry, signed as a whole: whoever has seen a version takes
no older one, so that neither an old alias nor a revoked release can be replayed; and whoever keeps
a reader from newer versions is noticed when the last one expires. The Update Framework has the same
two rules for its timestamp (theupdateframework.io, specification 1.0.33, section 5.4).
"""

import re
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Annotated, Literal, Self

from pydantic import Field

from fedlora.errors import ReleaseError
from fedlora.release.entries import Alias, Published, Revoked, as_reason
from fedlora.release.manifest import Time, canonical_text, is_release, read_canonical, stamp
from fedlora.release.sealed import INDEX_TYPE, seal, unseal
from fedlora.sections import NAME, Digest, Name, Section
from fedlora.signing import PublicKey, Signer

LIFETIME = timedelta(days=30)
"""How long an index is good for."""

_MOST_RELEASES = 8_000
_LARGEST = 5 * 2**19
"""Bytes of an index: room for so many releases with what was revoked of them."""
_MOST_BEFORE = 20
"""Releases that an alias remembers; older ones are in older versions of the index."""


class Index(Section):
    """A version of a name's index. A change gives a new version; no version changes."""

    format: Literal["fedlora.index/v1"] = "fedlora.index/v1"
    name: Name
    version: Annotated[int, Field(ge=0)]
    issued: Time
    expires: Time
    releases: dict[Digest, Published]
    """Every release that there ever was."""
    aliases: dict[Name, Alias]

    @classmethod
    def empty(cls, name: str, *, now: datetime) -> Self:
        """Return what the first version of a name's index follows; it is never kept."""
        return cls(
            name=name,
            version=0,
            issued=stamp(now),
            expires=stamp(now + LIFETIME),
            releases={},
            aliases={},
        )

    def published(self, release: str, *, now: datetime) -> Self:
        """Return the next version, with one more release, to which ``latest`` points.

        Raises:
            ReleaseError: the name has as many as an index holds.
        """
        if release in self.releases:
            return self
        if len(self.releases) >= _MOST_RELEASES:
            raise ReleaseError(
                f"{self.name} has {_MOST_RELEASES:,} releases, which is all that an index holds. "
                "Publish under a new name."
            )
        releases = {**self.releases, release: Published(at=stamp(now), version=self.version + 1)}
        aliases = self._pointing("latest", release, reason="published", now=now)
        return self._next(now, releases=releases, aliases=aliases)

    def moved(
        self, alias: str, release: str, *, expected: str | None, reason: str, now: datetime
    ) -> Self:
        """Return the next version, in which an alias points to a release.

        Args:
            alias: such as ``production``.
            release: of this index.
            expected: the release that the alias points to now; None where it is new.
            reason: why it moves.
            now: the time.

        Raises:
            ReleaseError: the alias points elsewhere, or the release cannot be used.
        """
        before = self.pointed(alias)
        if before != expected:
            raise ReleaseError(
                f"{self.name}@{alias} points to {before and before[:12]}, not to "
                f"{expected and expected[:12]}: somebody moved it meanwhile. Look again, then "
                "decide."
            )
        self.require_usable(release)
        if is_release(alias) or not re.fullmatch(NAME, alias):
            raise ReleaseError(
                f"{alias!r:.80} is no name of an alias: letters, digits, '_', '.' and '-' were "
                "expected, and nothing that looks like a release."
            )
        aliases = self._pointing(alias, release, reason=reason, now=now)
        return self._next(now, aliases=aliases)

    def rolled_back(self, alias: str, *, reason: str, now: datetime) -> Self:
        """Return the next version, in which an alias points where it pointed before.

        What was revoked since is passed over.

        Raises:
            ReleaseError: there is no such alias, or nothing usable before.
        """
        found = self._alias(alias)
        before = list(found.before)
        while before and not self.is_usable(before[-1]):
            before.pop()
        if not before:
            raise ReleaseError(f"{self.name}@{alias} has pointed to no usable release before.")
        since, reason = stamp(now), as_reason(reason)
        to = Alias(release=before.pop(), since=since, reason=reason, before=tuple(before))
        return self._next(now, aliases={**self.aliases, alias: to})

    def revoking(self, release: str, *, reason: str, now: datetime) -> Self:
        """Return the next version, in which a release is revoked; aliases to it give an error.

        One whose files were removed can be, too: readers still have copies.

        Raises:
            ReleaseError: there is no such release, it is revoked already, or the reason is none.
        """
        if release not in self.releases or release in self.revoked:
            self.require_usable(release)
        revoked = Revoked(at=stamp(now), reason=as_reason(reason))
        changed = self.releases[release].model_copy(update={"revoked": revoked})
        return self._next(now, releases={**self.releases, release: changed})

    def collecting(self, releases: Iterable[str], *, now: datetime) -> Self:
        """Return the next version, in which the files of releases have gone."""
        collected = {
            release: self.releases[release].model_copy(update={"collected": stamp(now)})
            for release in releases
        }
        return self._next(now, releases={**self.releases, **collected})

    def renewed(self, *, now: datetime) -> Self:
        """Return the next version, which says the same and expires later."""
        return self._next(now)

    def pointed(self, alias: str) -> str | None:
        """Return the release that an alias points to, usable or not; None if there is no alias."""
        found = self.aliases.get(alias)
        return found.release if found else None

    def find(self, version: str) -> str:
        """Return the release that an alias points to or that begins so, usable or not.

        Raises:
            ReleaseError: there is none, or several begin so.
        """
        if version in self.aliases or not is_release(version):
            return self._alias(version).release
        found = [release for release in self.releases if release.startswith(version)]
        if len(found) != 1:
            raise ReleaseError(f"{self.name}: {len(found)} releases begin with {version}.")
        return found[0]

    def target(self, alias: str) -> str:
        """Return the release that an alias points to.

        Raises:
            ReleaseError: there is no such alias, or the release cannot be used.
        """
        found = self._alias(alias)
        self.require_usable(found.release)
        return found.release

    @property
    def in_order(self) -> list[str]:
        """All releases, oldest first."""
        return sorted(self.releases, key=lambda release: self.releases[release].version)

    @property
    def revoked(self) -> frozenset[str]:
        """The releases that were revoked."""
        return frozenset(release for release, found in self.releases.items() if found.revoked)

    def is_usable(self, release: str) -> bool:
        """Tell whether a release is there, with its files, and not revoked."""
        found = self.releases.get(release)
        return found is not None and not found.revoked and not found.collected

    def require_usable(self, release: str) -> None:
        """Do nothing if a release is there and not revoked.

        Raises:
            ReleaseError: it is not.
        """
        found = self.releases.get(release)
        if found is None:
            raise ReleaseError(f"{self.name} has no release {release[:12]}.")
        if found.revoked:
            raise ReleaseError(
                f"{self.name} {release[:12]} was revoked on {found.revoked.at}: "
                f"{found.revoked.reason}"
            )
        if found.collected:
            raise ReleaseError(
                f"{self.name} {release[:12]}: its files were removed on {found.collected}."
            )

    def require_fresh(self, *, now: datetime) -> None:
        """Do nothing if the index has not expired.

        Raises:
            ReleaseError: it has; what is newer may be kept from the reader.
        """
        if stamp(now) > self.expires:
            raise ReleaseError(
                f"{self.name}: the newest index to be had (version {self.version}) expired on "
                f"{self.expires}. What was published or revoked since is not known. Its publisher "
                "renews it: fedlora adapters renew."
            )

    def require_follows(self, before: Self) -> None:
        """Do nothing if this is the version after ``before``, and loses nothing of it.

        Raises:
            ReleaseError: it is not.
        """
        if (self.name, self.version) != (before.name, before.version + 1):
            raise ReleaseError(
                f"{before.name} is at version {before.version}, so that {self.name} version "
                f"{self.version} does not follow: somebody else was quicker. Try again."
            )
        for release, was in before.releases.items():
            now = self.releases.get(release)
            if now is None or not now.keeps(was):
                raise ReleaseError(f"{self.name}: an index never forgets, but {release[:12]}.")

    def seal(self, signer: Signer) -> bytes:
        """Return the signed envelope."""
        return seal(canonical_text(self), INDEX_TYPE, signer=signer)

    @classmethod
    def unseal(cls, envelope: bytes, *, key: PublicKey, source: str) -> Self:
        """Return the index that the key's owner has sealed.

        Raises:
            ReleaseError: it is none, or somebody else's.
        """
        payload = unseal(envelope, INDEX_TYPE, key=key, source=source)
        return read_canonical(cls, payload, source=source, what="an index", most=_LARGEST)

    def _alias(self, alias: str) -> Alias:
        found = self.aliases.get(alias)
        if found is None:
            known = ", ".join(sorted(self.aliases)) or "none"
            raise ReleaseError(f"{self.name} has no alias {alias}, only: {known}.")
        return found

    def _pointing(
        self, alias: str, release: str, *, reason: str, now: datetime
    ) -> Mapping[str, Alias]:
        found = self.aliases.get(alias)
        before = (*found.before, found.release)[-_MOST_BEFORE:] if found else ()
        to = Alias(release=release, since=stamp(now), reason=as_reason(reason), before=before)
        return {**self.aliases, alias: to}

    def _next(self, now: datetime, **values: Mapping[str, object]) -> Self:
        times = {"issued": stamp(now), "expires": stamp(now + LIFETIME)}
        return self.model_copy(update={"version": self.version + 1, **times, **values})
