"""Which releases of a store nobody needs any more, and their removal."""

from collections.abc import Iterable, Mapping
from datetime import datetime

from fedlora.errors import ReleaseError
from fedlora.release.index import Index
from fedlora.release.publisher import Publisher
from fedlora.release.source import manifest_of
from fedlora.release.store import Store


def garbage(index: Index, parents: Mapping[str, str | None]) -> list[str]:
    """Return the releases that neither an alias nor a lineage needs, oldest first.

    An alias needs what it points to and what it can be rolled back to; ``latest`` is not rolled
    back. A release that is needed needs its parent.

    Args:
        index: of the name.
        parents: of each release that has files.
    """
    needed = _with_ancestors(
        (
            release
            for alias, to in index.aliases.items()
            for release in (to.release, *(() if alias == "latest" else to.before))
        ),
        parents,
    )
    return [release for release in parents if release not in needed]


def collect(store: Store, publisher: Publisher, name: str, *, now: datetime) -> list[str]:
    """Remove a name's garbage from a store, and return it; and what killed publications left.

    The index says first that the files have gone, so that no reader is sent to them; if that is
    all that was done, the next call removes them.

    Raises:
        ReleaseError: there is no such name, or somebody else changed the index meanwhile.
    """
    index = publisher.index(name)
    if not index.version:
        raise ReleaseError(f"{store.path}: there is no {name}.")
    listed = [r for r in index.in_order if not index.releases[r].collected]
    manifests = {
        release: manifest_of(store, release, name=name, key=store.key)[0] for release in listed
    }
    parents = {release: manifest.origin.parent for release, manifest in manifests.items()}
    removed = garbage(index, parents)
    if removed:
        index = index.collecting(removed, now=now)
        publisher.commit(index)
    for release, published in index.releases.items():
        if published.collected:
            store.remove(release)
    store.sweep()
    return removed


def _with_ancestors(releases: Iterable[str], parents: Mapping[str, str | None]) -> set[str]:
    needed: set[str] = set()
    for release in releases:
        each: str | None = release
        while each is not None and each not in needed:
            needed.add(each)
            each = parents.get(each)
    return needed
