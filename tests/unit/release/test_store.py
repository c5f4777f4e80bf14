"""A store takes what its publisher signed, shows it whole, and rewrites nothing."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from pathlib import Path

import pytest

from fedlora import atomic
from fedlora.errors import ReleaseError
from fedlora.release.folder import sign_folder, verify
from fedlora.release.publisher import Publisher
from fedlora.release.seen import Seen
from fedlora.signing import Signer, new_key
from simulations.published import Scene, manifest_of


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene.new(tmp_path)


def test_what_is_published_is_there(scene: Scene) -> None:
    """Under its name, with latest pointing to it; the folder is verified."""
    first, second = scene.publish(seed=1), scene.publish(seed=2)

    index = scene.publisher.index("demo")
    assert list(scene.store.names()) == ["demo"]
    assert index.in_order == [first.id, second.id]
    assert index.target("latest") == second.id
    verify(scene.store.path / "releases" / first.id, key=scene.signer.public)


def test_publishing_again_changes_nothing(scene: Scene) -> None:
    """The same bytes are the same release."""
    first = scene.publish()
    before = scene.store.index("demo")

    assert scene.publish().id == first.id
    assert scene.store.index("demo") == before


def test_another_publisher_is_refused(scene: Scene, tmp_path: Path) -> None:
    """Neither release nor index comes in, and nothing of them stays."""
    new_key(tmp_path / "other.key")
    other = Signer.load(tmp_path / "other.key")
    folder = scene.draft()
    publisher = Publisher(scene.store, other, seen=Seen(tmp_path / "seen.json"))

    with pytest.raises(ReleaseError, match="signature is not good"):
        publisher.publish(folder, manifest_of(folder))
    assert list(scene.store.names()) == []
    assert not (scene.store.path / "releases").exists()


def test_an_index_must_list_what_is_published(scene: Scene) -> None:
    """A release of another name, or an index without it, is refused."""
    folder = scene.draft()
    manifest = manifest_of(folder)
    sign_folder(folder, manifest, signer=scene.signer)
    empty = scene.publisher.index("demo").renewed(now=scene.now)
    other = scene.publisher.index("other").published(manifest.release, now=scene.now)

    for index in (empty, other):
        with pytest.raises(ReleaseError, match="does not list"):
            scene.store.publish(folder, index.seal(scene.signer))
    with pytest.raises(ReleaseError, match="was not published"):
        scene.store.commit(other.seal(scene.signer))


def test_of_two_at_once_the_first_wins_and_the_other_is_told(scene: Scene) -> None:
    """No version is lost or written over, however many try."""
    release = scene.publish()

    def move(alias: str) -> bool:
        try:
            scene.publisher.move("demo", alias, release.id, expected=None, reason="x")
        except ReleaseError as error:
            said.append(str(error))
            return False
        return True

    said: list[str] = []
    with ThreadPoolExecutor(8) as pool:
        won = sum(pool.map(move, [f"alias-{i}" for i in range(40)]))
    assert all("somebody else was quicker" in each for each in said)

    index = scene.publisher.index("demo")
    assert index.version == 1 + won
    assert len(index.aliases) == 1 + won
    assert len(list(scene.store.since("demo", after=0))) == won + 1


def test_an_index_in_somebody_elses_folder_is_not_found(scene: Scene) -> None:
    """Names with a path in them lead nowhere."""
    scene.publish()
    for name in ("../index/demo", "demo/..", "", ".", "/etc"):
        with pytest.raises(ReleaseError):
            scene.store.index(name)
        with pytest.raises(ReleaseError):
            scene.store.manifest(name)


def test_a_file_outside_the_release_is_not_read(scene: Scene) -> None:
    """Only what lies in the release's folder itself."""
    release = scene.publish()
    for file in ("../../registry.yaml", "/etc/passwd", "", "nothing"):
        with pytest.raises(ReleaseError):
            list(scene.store.read(release.id, file))


def test_a_kill_before_the_first_index_leaves_no_name(scene: Scene) -> None:
    """A folder with what somebody was about to write is nobody's name, and in nobody's way."""
    folder = scene.store.path / "index" / "demo"
    folder.mkdir(parents=True)
    (folder / ".00000001.json.x").write_bytes(b"half")

    assert list(scene.store.names()) == []
    scene.publish()
    assert list(scene.store.names()) == ["demo"]


def leave(store: Path) -> list[Path]:
    """Leave what publications leave that are killed: a copy, and the next version of an index."""
    copy, version = store / "releases" / ".ab.x", store / "index" / "demo" / ".00000002.json.x"
    copy.mkdir()
    for path in (copy / "README.md", version):
        path.write_text("half")
    return [copy, version]


def test_what_killed_publications_left_is_removed_by_the_next(scene: Scene) -> None:
    """At once, whether it is a publication, a commit, or the collector that comes next."""
    release = scene.publish(seed=1)
    left = leave(scene.store.path)
    scene.publish(seed=2)
    assert not any(path.exists() for path in left)
    left = leave(scene.store.path)
    scene.store.sweep()
    assert not any(path.exists() for path in left)
    _, version = leave(scene.store.path)
    scene.publisher.move("demo", "a", release.id, expected=None, reason="x")
    assert not version.exists()


def test_whoever_brings_a_release_in_is_waited_for(scene: Scene) -> None:
    """What it has copied so far stays; and its release is not replaced by the same once more."""
    scene.publish(seed=1)
    folder = scene.draft(seed=2)
    manifest = manifest_of(folder)
    sign_folder(folder, manifest, signer=scene.signer)
    index = scene.publisher.index("demo").published(manifest.release, now=scene.now)
    releases = scene.store.path / "releases"
    place, partial = releases / manifest.release, releases / f".{manifest.release}.x"
    with ThreadPoolExecutor(1) as pool:
        with atomic.alone(releases / ".lock"):
            shutil.copytree(folder, partial)
            publication = pool.submit(scene.store.publish, folder, index.seal(scene.signer))
            assert not wait_for([publication], timeout=0.5).done
            partial.rename(place)
            before = place.stat().st_ino
        publication.result()
    assert place.stat().st_ino == before
    assert scene.publisher.index("demo").target("latest") == manifest.release


def test_a_folder_that_is_adopted_is_moved(scene: Scene) -> None:
    """After the same checks, none of its bytes is written again."""
    folder = scene.draft()
    manifest = manifest_of(folder)
    sign_folder(folder, manifest, signer=scene.signer)
    index = scene.publisher.index("demo").published(manifest.release, now=scene.now)
    inodes = {path.name: path.stat().st_ino for path in folder.iterdir()}
    other = scene.publisher.index("other").published(manifest.release, now=scene.now)
    with pytest.raises(ReleaseError, match="does not list"):
        scene.store.adopt(folder, other.seal(scene.signer))

    scene.store.adopt(folder, index.seal(scene.signer))

    place = scene.store.path / "releases" / manifest.release
    assert {path.name: path.stat().st_ino for path in place.iterdir()} == inodes
    assert not folder.exists()
    verify(place, key=scene.signer.public)
