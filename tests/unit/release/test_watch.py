"""A watched folder holds what an alias points to, and nothing that was revoked."""

from collections.abc import Iterator
from datetime import datetime, tzinfo
from pathlib import Path

import pytest

from fedlora.errors import ReleaseError
from fedlora.release.index import LIFETIME
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


def watched(scene: Scene, into: Path, reference: str = "demo@production") -> list[str]:
    source = Finite(scene.store.path, key=scene.signer.public)
    puller = Puller(source, scene.signer.public, home=scene.path / "watcher")
    return [change.reason for change in watch(puller, reference, into=into)]


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


def test_aliases_share_a_folder(scene: Scene, tmp_path: Path) -> None:
    """What another alias points to stays, and what is nobody's of ours."""
    first, *others = [scene.publish(seed=seed) for seed in range(4)]
    into, before = tmp_path / "into", None
    scene.publisher.move("demo", "production", first.id, expected=None, reason="x")
    watched(scene, into)
    (into / "demo@my-notes").mkdir()
    for release in others:
        scene.publisher.move("demo", "candidate", release.id, expected=before, reason="x")
        before = release.id
        watched(scene, into, "demo@candidate")

    assert (into / "demo@my-notes").is_dir()
    assert (into / "demo@production" / "adapter_model.safetensors").is_file()
    scene.publisher.revoke("demo", first.id, reason="x")
    watched(scene, into, "demo@candidate")
    assert not (into / "demo@production").is_symlink()


def test_an_expired_index_is_told_and_what_is_there_stays(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, whoever keeps it from the reader; a renewal ends it."""
    scene.publish()
    monkeypatch.setattr("fedlora.release.watch._AFTER_ERROR_S", 0)
    monkeypatch.setattr("fedlora.release.store._LOOK", 0)
    changes = watch(scene.puller, "demo", into=tmp_path)
    assert next(changes).reason == ""

    class Later(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime.now(tz) + 2 * LIFETIME

    with monkeypatch.context() as late:
        late.setattr("fedlora.release.watch.datetime", Later)
        late.setattr("fedlora.release.pull.datetime", Later)
        change = next(changes)
    assert "expired on" in change.reason
    assert change.folder is not None
    assert (change.folder / "adapter_model.safetensors").is_file()
    assert next(changes).reason == ""


def test_a_source_that_fails_is_asked_again(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told once, and what came meanwhile is brought."""
    monkeypatch.setattr("fedlora.release.watch._AFTER_ERROR_S", 0)
    scene.publish()

    class Failing(Store):
        left = 3

        def watch(self, name: str, *, after: int) -> Iterator[bytes | None]:
            if self.left:
                self.left -= 1
                raise ReleaseError("the registry is away")
            return super().watch(name, after=after)

    scene.puller.source = Failing(scene.store.path, key=scene.signer.public)
    changes = watch(scene.puller, "demo", into=tmp_path)
    next(changes)
    assert next(changes).reason == "the registry is away"
    newer = scene.publish(seed=1)
    change = next(changes)
    while change.reason or change.index.version < 2:
        change = next(changes)
    assert change.folder == tmp_path / f"demo@{newer.id[:12]}"


def test_a_release_is_not_watched(scene: Scene, tmp_path: Path) -> None:
    """It never changes."""
    release = scene.publish()
    with pytest.raises(ReleaseError, match="a release never changes"):
        next(watch(scene.puller, f"demo@{release.id[:12]}", into=tmp_path))


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
