"""What a reader or a publisher has seen of indices: no older one is taken, nor two of a version.

An old index is as well signed as a new one. Only memory tells that a registry, or somebody between,
plays back the time before a revocation.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Self

from pydantic import BaseModel, TypeAdapter, ValidationError

from fedlora import atomic
from fedlora.errors import ReleaseError
from fedlora.release.index import Index
from fedlora.release.manifest import canonical_text
from fedlora.signing import PublicKey


class _Entry(BaseModel):
    """The newest index of a name that was seen."""

    version: int
    sha256: str
    revoked: frozenset[str] = frozenset()
    """Releases: what was revoked stays so, whatever a later version says."""

    @classmethod
    def of(cls, index: Index) -> Self:
        """Return what is remembered of an index."""
        digest = hashlib.sha256(canonical_text(index)).hexdigest()
        return cls(version=index.version, sha256=digest, revoked=index.revoked)


_File = TypeAdapter(dict[str, dict[str, _Entry]])
"""By the publisher's key and the index's name."""


SEEN = "seen.json"
"""Its file in a folder of a reader or publisher."""


class Seen:
    """A small file with the newest version of each name's index, by publisher.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def newest(self, name: str, ask: Callable[[], Index], *, key: PublicKey) -> Index:
        """Ask for the newest index of a name, and remember it.

        Args:
            name: the index's.
            ask: returns the index, of version 0 where there is none yet.
            key: its publisher's.

        Raises:
            ReleaseError: a newer one was seen before it was asked for, another of this version, or
                one in which something was revoked that is not any more.
            StorageError: it cannot be remembered.
        """
        before = self._read().get(key.text, {}).get(name)
        index = ask()
        if before is not None:
            self._require_newer(before, index)
        self.take(index, key=key)
        return index

    def take(self, index: Index, *, key: PublicKey) -> None:
        """Remember an index, if it is newer than what was seen.

        Raises:
            StorageError: it cannot be remembered.
        """
        with atomic.alone(self.path.with_suffix(".lock")):  # or an older one could be written
            seen = self._read()
            of_key = seen.setdefault(key.text, {})
            known = of_key.get(index.name)
            if index.version > (known.version if known else 0):
                of_key[index.name] = _Entry.of(index)
                atomic.write_file(self.path, _File.dump_json(seen, indent=1))

    def _require_newer(self, before: "_Entry", index: Index) -> None:
        now = _Entry.of(index)
        if before.version > now.version:
            raise ReleaseError(
                f"{index.name}: the index is version {now.version}, but version {before.version} "
                "was seen before. Somebody plays back an old one, or the registry was restored "
                f"from an old backup: ask its publisher. What was seen is in {self.path}."
            )
        if before.version == now.version and before.sha256 != now.sha256:
            raise ReleaseError(
                f"{index.name}: there are two indices of version {now.version}: the publisher has "
                "signed both. Ask which one holds."
            )
        if undone := before.revoked - now.revoked:
            raise ReleaseError(
                f"{index.name}: {min(undone)[:12]} was revoked, and in version {now.version} it is "
                "not. Somebody made its publisher sign what follows an old index: ask there."
            )

    def _read(self) -> dict[str, dict[str, _Entry]]:
        try:
            return _File.validate_json(self.path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValidationError) as error:
            raise ReleaseError(
                f"{self.path}: this file remembers which indices were seen, and cannot be read "
                f"({type(error).__name__}). Restore it; or remove it, and with it the protection "
                "against older ones."
            ) from None
