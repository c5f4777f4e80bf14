"""Keeping a folder current from which a serving engine loads adapters.

::

    demo@3f1c0a9b7d21/   a release each; a name that never means another adapter
    demo@production      a link to the one that the alias points to

Engines cache adapters by name, so that a name that moves can serve old weights: ask for the release
by its own name, or tell the engine to load it again.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fedlora import atomic
from fedlora.errors import ReleaseError
from fedlora.release.index import Index
from fedlora.release.pull import Puller
from fedlora.release.source import parse

_KEPT = 2
"""Releases that stay: the current one, and the one before for requests that are under way."""


@dataclass(frozen=True)
class Change:
    """What a new index has brought."""

    index: Index
    folder: Path | None
    """The current release's; None while there is none to use."""
    reason: str = ""
    """Why there is none."""


def watch(puller: Puller, reference: str, *, into: Path) -> Iterator[Change]:
    """Keep ``into`` current, and yield after each change; it goes on until the reader stops.

    A release that was revoked is taken away at once, so that no engine loads it any more.

    Raises:
        ReleaseError: there is no such name, or the source does not answer or is not honest.
        StorageError: the folder cannot be written.
    """
    name, alias = parse(reference)
    current = None
    for index in _indices(puller, name):
        _drop_unusable(index, alias, into=into)
        try:
            release = index.target(alias)
        except ReleaseError as error:
            current = None
            yield Change(index, None, str(error))
        else:
            if release != current:
                yield Change(index, _bring(puller, release, into=into, name=name, alias=alias))
            current = release


def _indices(puller: Puller, name: str) -> Iterator[Index]:
    """Yield the newest index, and then each as it comes."""
    index = puller.index(name)
    yield index
    for envelope in puller.source.watch(name, after=index.version):
        yield puller.accept(envelope, name)


def _bring(puller: Puller, release: str, *, into: Path, name: str, alias: str) -> Path:
    """Fetch a release, let the link point to it, and remove the oldest others."""
    folder = into / f"{name}@{release[:12]}"
    puller.fetch(release, into=folder)
    with atomic.storage_errors(into):
        link = into / f".{name}@{alias}"
        link.unlink(missing_ok=True)
        link.symlink_to(folder.name)
        link.replace(into / f"{name}@{alias}")
        os.utime(folder)
    for old in _releases(into, name)[:-_KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def _drop_unusable(index: Index, alias: str, *, into: Path) -> None:
    """Remove what is not to be used any more, and a link to it."""
    usable = {release[:12] for release in index.releases if index.is_usable(release)}
    for folder in _releases(into, index.name):
        if folder.name.rpartition("@")[2] not in usable:
            link = into / f"{index.name}@{alias}"
            if link.is_symlink() and link.readlink() == Path(folder.name):
                link.unlink()
            shutil.rmtree(folder, ignore_errors=True)


def _releases(into: Path, name: str) -> list[Path]:
    """Return the folders of a name's releases, the newest last."""
    found = (p for p in into.glob(f"{name}@*") if p.is_dir() and not p.is_symlink())
    return sorted(found, key=lambda path: path.stat().st_mtime)
