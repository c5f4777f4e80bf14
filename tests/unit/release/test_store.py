"""A store takes what its publisher signed, shows it whole, and rewrites nothing."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

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
