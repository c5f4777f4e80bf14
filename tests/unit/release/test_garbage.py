"""What is removed from a store is what nobody needs; readers are told."""

from pathlib import Path
from unittest.mock import Mock

import pytest

from fedlora.errors import ReleaseError
from fedlora.release.folder import Release, verify
from fedlora.release.garbage import collect
from fedlora.release.manifest import Origin
from simulations.published import DIGEST, Scene


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene.new(tmp_path)


def after(parent: Release) -> Origin:
    return Origin(run="demo-1", round=1, rounds=1, recipe=DIGEST, parent=parent.id)


def collected(scene: Scene) -> list[str]:
    return collect(scene.store, scene.publisher, "demo", now=scene.now)


def test_what_an_alias_or_a_lineage_needs_stays(scene: Scene) -> None:
    """What is pointed to, what it can be rolled back to, and the parents of both; else nothing."""
    before, parent = scene.publish(seed=1), scene.publish(seed=2)
    scene.publisher.move("demo", "production", before.id, expected=None, reason="x")
    child = scene.publish(seed=3, origin=after(parent))
    scene.publisher.move("demo", "production", child.id, expected=before.id, reason="x")
    orphan, latest = scene.publish(seed=4), scene.publish(seed=5)

    assert collected(scene) == [orphan.id]
    for kept in (before, parent, child, latest):
        verify(scene.store.path / "releases" / kept.id, key=scene.signer.public)
    assert not (scene.store.path / "releases" / orphan.id).exists()
    with pytest.raises(ReleaseError, match="its files were removed on"):
        scene.puller.pull(f"demo@{orphan.id}")
    assert collected(scene) == []


def test_files_that_a_crash_left_are_removed_the_next_time(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index said already that they have gone."""
    orphan = scene.publish(seed=1)
    scene.publish(seed=2)
    crash = Mock(side_effect=KeyboardInterrupt)
    monkeypatch.setattr(scene.store, "remove", crash)
    with pytest.raises(KeyboardInterrupt):
        collected(scene)
    assert (scene.store.path / "releases" / orphan.id).exists()

    monkeypatch.undo()
    assert collected(scene) == []
    assert not (scene.store.path / "releases" / orphan.id).exists()
