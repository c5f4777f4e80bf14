"""The publisher: whoever holds the key that releases and indices are signed with.

Each change reads the newest index, makes the next version, signs it and commits it. A registry
needs no key for that, so that the key can live off the exposed host.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from fedlora.errors import ReleaseError
from fedlora.release.folder import Release, sign_folder, verify
from fedlora.release.index import Index
from fedlora.release.manifest import Manifest
from fedlora.release.seen import Seen
from fedlora.release.source import Target, index_of
from fedlora.signing import Signer


class Publisher:
    """Publishes to a store or a registry.

    Args:
        target: where to; it is not believed. What follows an old index would undo what came after
            that, and be well signed.
        signer: the publishing key.
        seen: remembers what was signed and seen.
        clock: gives the time.
    """

    def __init__(
        self,
        target: Target,
        signer: Signer,
        *,
        seen: Seen,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.target = target
        self.key = signer.public
        self._signer = signer
        self._seen = seen
        self._clock = clock

    def index(self, name: str) -> Index:
        """Return the newest index of a name, or an empty one; it may have expired.

        Raises:
            ReleaseError: it is another publisher's or another name's, or older than one seen
                before; or the target does not answer.
        """
        return self._seen.newest(name, lambda: self._ask(name), key=self.key)

    def _ask(self, name: str) -> Index:
        if name not in self.target.names():
            return Index.empty(name, now=self._clock())
        return index_of(self.target.index(name), name, key=self.key)

    def publish(self, folder: Path, manifest: Manifest) -> Release:
        """Sign a release in its folder, and publish it; ``latest`` points to it then.

        What is there already stays as it is.

        Raises:
            ReleaseError: the folder is not what the manifest says, the release was there and is
                not to be used any more, or the target refuses it.
            StorageError: the folder cannot be written.
        """
        sign_folder(folder, manifest, signer=self._signer)
        release = verify(folder, key=self.key)
        index = self.index(manifest.name)
        if release.id in index.releases:
            index.require_usable(release.id)
        else:
            listed = index.published(release.id, now=self._clock())
            self.target.publish(folder, listed.seal(self._signer))
            self._seen.take(listed, key=self.key)
        return release

    def move(
        self, name: str, alias: str, release: str, *, expected: str | None, reason: str
    ) -> Index:
        """Let an alias point to a release, if it points to ``expected`` now (None: is new).

        Raises:
            ReleaseError: it points elsewhere, the release cannot be used, or somebody else was
                quicker.
        """
        return self.commit(
            self.index(name).moved(
                alias, release, expected=expected, reason=reason, now=self._clock()
            )
        )

    def roll_back(self, name: str, alias: str, *, reason: str) -> Index:
        """Let an alias point to the usable release that it pointed to before.

        Raises:
            ReleaseError: there is none, or somebody else was quicker.
        """
        return self.commit(self.index(name).rolled_back(alias, reason=reason, now=self._clock()))

    def revoke(self, name: str, release: str, *, reason: str) -> Index:
        """Say that a release is not to be used any more; readers that ask for it get the reason.

        Raises:
            ReleaseError: there is no such release, or somebody else was quicker.
        """
        return self.commit(self.index(name).revoking(release, reason=reason, now=self._clock()))

    def renew(self, name: str) -> Index:
        """Sign the index anew, before it expires.

        Raises:
            ReleaseError: there is no such name, or somebody else was quicker.
        """
        index = self.index(name)
        if not index.version:
            raise ReleaseError(f"There is no {name} to renew.")
        return self.commit(index.renewed(now=self._clock()))

    def commit(self, index: Index) -> Index:
        """Sign the next version of an index, and commit it.

        Raises:
            ReleaseError: somebody else was quicker.
        """
        self.target.commit(index.seal(self._signer))
        self._seen.take(index, key=self.key)
        return index
