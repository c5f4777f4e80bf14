"""A watched folder holds what an alias points to, and nothing that was revoked."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fedlora.release.pull import Puller
from fedlora.release.store import Store
from fedlora.release.watch import watch
from simulations.published import Scene


class Finite(Store):
    """A store whose watch ends when there is nothing new."""

    def watch(self, name: str, *, after: int) -> Iterator[bytes]:
        for path in self._versions(name)[after:]:
            yield path.read_bytes()


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene.new(tmp_path)


def watched(scene: Scene, into: Path) -> list[str]:
    source = Finite(scene.store.path, key=scene.signer.public)
    puller = Puller(source, scene.signer.public, home=scene.path / "watcher")
    return [change.reason for change in watch(puller, "demo@production", into=into)]


def test_the_folder_follows_the_alias(scene: Scene, tmp_path: Path) -> None:
    """Each release in a folder whose name never means another; the link moves in one step."""
    releases = [scene.publish(seed=seed) for seed in range(4)]
    into, before = tmp_path / "into", None
    for release in releases:
        scene.publisher.move("demo", "production", release.id, expected=before, reason="x")
        before = release.id
        watched(scene, into)

    assert (into / "demo@production").readlink() == Path(f"demo@{before[:12]}")
    kept = {path.name for path in into.iterdir()}
    assert kept == {"demo@production", *(f"demo@{each.id[:12]}" for each in releases[-2:])}


def test_a_revoked_release_is_taken_away(scene: Scene, tmp_path: Path) -> None:
    """Link and folder; the reason is told. After a rollback the one before is there again."""
    first, second = scene.publish(seed=1), scene.publish(seed=2)
    scene.publisher.move("demo", "production", first.id, expected=None, reason="x")
    scene.publisher.move("demo", "production", second.id, expected=first.id, reason="x")
    into = tmp_path / "into"
    assert watched(scene, into) == [""]
    scene.publisher.revoke("demo", second.id, reason="it knows a patient's name")
    assert "a patient's name" in watched(scene, into)[-1]
    assert list(into.iterdir()) == []

    scene.publisher.roll_back("demo", "production", reason="x")
    assert watched(scene, into)[-1] == ""
    assert (into / "demo@production").readlink() == Path(f"demo@{first.id[:12]}")
