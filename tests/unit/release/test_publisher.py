"""A publisher believes its registry no more than a reader does: what it signs is well signed."""

from pathlib import Path

import pytest

from fedlora.errors import ReleaseError
from fedlora.release.index import Index
from fedlora.release.publisher import Publisher
from fedlora.release.seen import Seen
from fedlora.release.store import Store
from simulations.published import Scene, manifest_of


class Lying(Store):
    """A target that shows another index, or denies a name."""

    shown: bytes | None = None
    denied = False

    def names(self) -> list[str]:
        return [] if self.denied else [*super().names(), "other"]

    def index(self, name: str) -> bytes:
        return self.shown or super().index(name)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene.new(tmp_path)


@pytest.fixture
def lying(scene: Scene) -> Lying:
    return Lying(scene.store.path, key=scene.signer.public)


def test_an_old_index_is_not_signed_anew(scene: Scene, lying: Lying) -> None:
    """It would undo a revocation, for every reader."""
    release = scene.publish()
    lying.shown = scene.store.index("demo")
    scene.publisher.revoke("demo", release.id, reason="it knows a patient's name")

    for change in (
        lambda publisher: publisher.renew("demo"),
        lambda publisher: publisher.move("demo", "x", release.id, expected=None, reason="x"),
        lambda publisher: publisher.roll_back("demo", "latest", reason="x"),
        lambda publisher: publisher.publish(scene.draft(seed=1), manifest_of(scene.draft(seed=1))),
    ):
        with pytest.raises(ReleaseError, match="version 2 was seen before"):
            change(scene.publisher_at(lying))


def test_a_name_that_was_published_does_not_begin_again(scene: Scene, lying: Lying) -> None:
    """A registry that denies it would get a second version 1."""
    scene.publish()
    lying.denied = True

    with pytest.raises(ReleaseError, match="version 1 was seen before"):
        scene.publisher_at(lying).publish(scene.draft(seed=1), manifest_of(scene.draft(seed=1)))


def test_the_index_of_another_name_is_not_signed(scene: Scene, lying: Lying) -> None:
    """Else the other name would list this one's release."""
    scene.publish()
    folder = scene.draft(seed=1)
    lying.shown = scene.store.index("demo")

    with pytest.raises(ReleaseError, match="The index of other was asked for"):
        scene.publisher_at(lying).publish(folder, manifest_of(folder, name="other"))
    assert list(scene.store.names()) == ["demo"]


def test_what_was_revoked_stays_so(scene: Scene, tmp_path: Path) -> None:
    """A reader who has seen a revocation takes no newer version that does not have it."""
    release = scene.publish()
    before = Index.unseal(scene.store.index("demo"), key=scene.signer.public, source="")
    scene.publisher.revoke("demo", release.id, reason="x")
    scene.puller.index("demo")
    newer = before.renewed(now=scene.now).renewed(now=scene.now).renewed(now=scene.now)
    Lying.shown = newer.seal(scene.signer)
    scene.puller.source = Lying(scene.store.path, key=scene.signer.public)

    try:
        with pytest.raises(ReleaseError, match="was revoked, and in version 4 it is not"):
            scene.puller.index("demo")
    finally:
        Lying.shown = None


def test_a_revoked_release_is_not_published_again(scene: Scene) -> None:
    """Nor is it said that it were."""
    release = scene.publish()
    scene.publisher.revoke("demo", release.id, reason="it knows a patient's name")

    with pytest.raises(ReleaseError, match="a patient's name"):
        scene.publish()


def test_what_was_collected_can_be_revoked(scene: Scene) -> None:
    """Readers still have copies of it."""
    release = scene.publish()
    index = scene.publisher.index("demo").collecting([release.id], now=scene.now)
    scene.publisher.commit(index)

    assert scene.publisher.revoke("demo", release.id, reason="x").revoked == {release.id}
    with pytest.raises(ReleaseError, match="was revoked"):
        scene.publisher.revoke("demo", release.id, reason="x")


def test_a_release_that_was_lost_does_not_block_its_name(scene: Scene) -> None:
    """An operator who removed what leaked can still revoke it, and renew the others."""
    release, _ = scene.publish(), scene.publish(seed=1)
    scene.store.remove(release.id)

    scene.publisher.revoke("demo", release.id, reason="it leaked")
    assert scene.publisher.renew("demo").version == 4


@pytest.mark.parametrize("reason", ["", "x" * 501])
def test_a_reason_has_a_length(scene: Scene, reason: str) -> None:
    """An error that says so, whatever changes."""
    release = scene.publish()
    with pytest.raises(ReleaseError, match=r"1 to 500 letters was expected, this has (0|501)"):
        scene.publisher.revoke("demo", release.id, reason=reason)
    with pytest.raises(ReleaseError, match="letters was expected"):
        scene.publisher.move("demo", "production", release.id, expected=None, reason=reason)


@pytest.mark.parametrize("alias", ["0123abcd", "a b", ""])
def test_an_alias_cannot_look_like_a_release(scene: Scene, alias: str) -> None:
    """Or ``NAME@RELEASE`` could mean another."""
    release = scene.publish()
    with pytest.raises(ReleaseError, match="is no name of an alias"):
        scene.publisher.move("demo", alias, release.id, expected=None, reason="x")


def test_publishers_with_one_memory_may_race(scene: Scene, tmp_path: Path) -> None:
    """One that reads while the other signs has not been shown an old index."""
    release = scene.publish()
    seen = Seen(tmp_path / "publisher" / "seen.json")

    class Slow(Store):
        def index(self, name: str) -> bytes:
            envelope = super().index(name)
            scene.publisher.renew(name)
            return envelope

    slow = Publisher(Slow(scene.store.path, key=scene.signer.public), scene.signer, seen=seen)
    with pytest.raises(ReleaseError, match="somebody else was quicker"):
        slow.move("demo", "x", release.id, expected=None, reason="x")
