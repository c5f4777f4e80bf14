"""Keeping a folder current from which a serving engine loads adapters.

::

    demo@3f1c0a9b7d21/   a release each; a name that never means another adapter
    demo@production      a link to the one that the alias points to

Engines cache adapters by name, so that a name that moves can serve old weights: ask for the release
by its own name, or tell the engine to load it again. Several aliases may be watched in one folder;
what has another name there is nobody's business here.
"""

import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from fedlora import atomic
from fedlora.errors import ReleaseError
from fedlora.release.index import Index
from fedlora.release.manifest import is_release
from fedlora.release.pull import Puller
from fedlora.release.source import parse

_KEPT = 2
"""Releases that stay: the newest, and the one before for requests that are under way."""
_AFTER_ERROR_S = 10.0
"""Before a source that failed is asked again."""


@dataclass(frozen=True)
class Change:
    """What has become of the folder."""

    index: Index
    folder: Path | None
    """The current release's; None while there is none that may be used."""
    reason: str = ""
    """Why there is none, or why nobody knows what came after it."""


def watch(puller: Puller, reference: str, *, into: Path) -> Iterator[Change]:
    """Keep ``into`` current, and yield after each change; it goes on until the reader stops.

    A release that was revoked is taken away at once, so that no engine loads it any more. While the
    source does not answer, is not honest, or has only an index that has expired, what is there
    stays, which is told once, and the source is asked again.

    Raises:
        ReleaseError: there is no such name, it names a release rather than an alias, or the source
            does not answer when the watch begins.
        StorageError: the folder cannot be written.
    """
    name, alias = parse(reference)
    index = puller.index(name)
    if is_release(alias) and alias not in index.aliases:
        raise ReleaseError(f"{reference}: a release never changes. Pull it, or watch an alias.")
    told = Change(index, None)
    for change in _changes(puller, index, alias, into=into):
        if (change.folder, change.reason) != (told.folder, told.reason):
            yield change
            told = change


def _changes(puller: Puller, index: Index, alias: str, *, into: Path) -> Iterator[Change]:
    """Yield how the folder stands whenever the source says something or fails."""
    change, ahead = Change(index, None), True
    while True:
        try:
            if ahead:
                change = _follow(puller, index, alias, into=into)
                ahead = False
                yield change
            for envelope in puller.source.watch(index.name, after=change.index.version):
                if envelope is not None:
                    index, ahead = _newer(puller, change.index), True
                    break
                change.index.require_fresh(now=datetime.now(UTC))
                yield change
            else:
                return
        except ReleaseError as error:
            yield replace(change, reason=str(error))
            time.sleep(_AFTER_ERROR_S)


def _newer(puller: Puller, index: Index) -> Index:
    """Return the newest index, now that the source says there is a newer one.

    Raises:
        ReleaseError: there is none; or as ``Puller.index``.
    """
    newest = puller.index(index.name)
    if newest.version <= index.version:
        raise ReleaseError(f"{index.name}: a newer index was announced, but there is none.")
    return newest


def _follow(puller: Puller, index: Index, alias: str, *, into: Path) -> Change:
    """Bring the folder to what an index says."""
    _drop_unusable(index, into=into)
    try:
        release = index.target(alias)
    except ReleaseError as error:
        return Change(index, None, str(error))
    folder = into / f"{index.name}@{release[:12]}"
    link = into / f"{index.name}@{alias}"
    if not (folder.is_dir() and _target(link) == folder.name):
        puller.fetch(release, name=index.name, into=folder)
        with atomic.storage_errors(into):
            new = into / f".{link.name}"
            new.unlink(missing_ok=True)
            new.symlink_to(folder.name)
            new.replace(link)
            os.utime(folder)
        _drop_old(into, index.name)
    return Change(index, folder)


def _drop_unusable(index: Index, *, into: Path) -> None:
    """Remove what is not to be used any more, and the links to it."""
    usable = {release[:12] for release in index.releases if index.is_usable(release)}
    for folder in _releases(into, index.name):
        if folder.name.rpartition("@")[2] not in usable:
            for link in _links(into, index.name):
                if _target(link) == folder.name:
                    link.unlink()
            shutil.rmtree(folder, ignore_errors=True)


def _drop_old(into: Path, name: str) -> None:
    """Remove all but the newest releases and those that a link points to."""
    linked = {_target(link) for link in _links(into, name)}
    for folder in _releases(into, name)[:-_KEPT]:
        if folder.name not in linked:
            shutil.rmtree(folder, ignore_errors=True)


def _releases(into: Path, name: str) -> list[Path]:
    """Return the folders of a name's releases, the newest last."""
    form = re.compile(rf"{re.escape(name)}@[0-9a-f]{{12}}")
    found = [p for p in into.glob(f"{name}@*") if form.fullmatch(p.name) and not p.is_symlink()]
    return sorted(found, key=lambda path: path.stat().st_mtime)


def _links(into: Path, name: str) -> list[Path]:
    return [path for path in into.glob(f"{name}@*") if path.is_symlink()]


def _target(link: Path) -> str | None:
    return link.readlink().name if link.is_symlink() else None
