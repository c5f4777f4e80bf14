"""A pull is verified to the byte, goes on where it stopped, and believes its publisher alone."""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from fedlora.errors import ReleaseError
from fedlora.peft_folder import read_peft_folder
from fedlora.release.folder import verify
from fedlora.release.index import LIFETIME
from fedlora.release.pull import Puller
from fedlora.release.store import Store
from simulations.published import Scene, adapter, manifest_of


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene.new(tmp_path)


class Cut(Store):
    """A source whose line is cut after so many bytes."""

    left = 10**9
    sent = 0

    def read(self, release: str, file: str, *, offset: int = 0) -> Iterator[bytes]:
        for chunk in super().read(release, file, offset=offset):
            for position in range(0, len(chunk), 16):
                piece = chunk[position : position + 16]
                if self.left < len(piece):
                    raise ReleaseError("the line is cut")
                self.left -= len(piece)
                self.sent += len(piece)
                yield piece


class Lying(Store):
    """A source that gives something else for what is asked."""

    replies: dict[str, bytes] = {}  # noqa: RUF012 - set by tests, of each one's own

    def index(self, name: str) -> bytes:
        return self.replies.get("index") or super().index(name)

    def manifest(self, release: str) -> tuple[bytes, bytes]:
        payload, signature = super().manifest(release)
        return self.replies.get("manifest", payload), self.replies.get("signature", signature)

    def read(self, release: str, file: str, *, offset: int = 0) -> Iterator[bytes]:
        if "file" not in self.replies:
            return super().read(release, file, offset=offset)
        return iter([self.replies["file"][offset:]])


def reading(scene: Scene, kind: type[Store]) -> tuple[Puller, Store]:
    source = kind(scene.store.path, key=scene.signer.public)
    return Puller(source, scene.signer.public, home=scene.path / "home"), source


def test_what_is_pulled_is_what_was_published(scene: Scene, tmp_path: Path) -> None:
    """By name, alias, and the beginning of the release; PEFT's files load."""
    release = scene.publish(seed=1)
    scene.publisher.move("demo", "production", release.id, expected=None, reason="x")

    for number, reference in enumerate(("demo", "demo@production", f"demo@{release.id[:8]}")):
        pulled = scene.puller.pull(reference, into=tmp_path / f"pulled-{number}")
        assert pulled.id == release.id
        state = read_peft_folder(pulled.folder, base_digest="ab" * 32)
        assert state.arranged_as(adapter(1).spec).values.equal(adapter(1).values)


def test_what_is_there_is_verified_and_not_fetched(scene: Scene) -> None:
    """And refused when somebody changed it, or when it is another release."""
    first, second = scene.publish(seed=1), scene.publish(seed=2)
    puller, source = reading(scene, Cut)
    pulled = puller.pull(f"demo@{first.id}")
    sent = source.sent

    assert puller.pull(f"demo@{first.id}") == pulled
    assert source.sent == sent
    with pytest.raises(ReleaseError, match="is there already"):
        puller.pull(f"demo@{second.id}", into=pulled.folder)
    (pulled.folder / "README.md").write_text("changed", encoding="utf-8")
    with pytest.raises(ReleaseError, match="not what was published"):
        puller.pull(f"demo@{first.id}")


def test_a_pull_goes_on_where_it_stopped(scene: Scene) -> None:
    """However often the line is cut, no byte is sent twice and nothing half is shown."""
    release = scene.publish()
    size = sum(file.size for file in release.manifest.files.values())
    puller, source = reading(scene, Cut)
    source.left = 100
    while source.sent < size - 100:
        with pytest.raises(ReleaseError, match="the line is cut"):
            puller.pull("demo")
        assert not (scene.path / "home" / "releases" / release.id).exists()
        source.left = 100
    source.left = 200
    pulled = puller.pull("demo")

    assert source.sent == size
    assert verify(pulled.folder, key=scene.signer.public) == pulled


def test_two_at_once_pull_one_release(scene: Scene) -> None:
    """The second waits for the first, and has what that one fetched."""
    release = scene.publish()

    def pull(_: int) -> str:
        return Puller(scene.store, scene.signer.public, home=scene.path / "home").pull("demo").id

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(pull, range(8))) == {release.id}


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder to another user")
def test_a_pull_does_not_go_on_in_another_user_s_folder(scene: Scene, tmp_path: Path) -> None:
    """In a folder that all may write to, somebody can be there first."""
    release = scene.publish()
    planted = tmp_path / f".adapter.{release.id[:12]}.partial"
    planted.mkdir()
    os.chown(planted, 65534, 65534)

    with pytest.raises(ReleaseError, match="another user's"):
        scene.puller.pull("demo", into=tmp_path / "adapter")


@pytest.mark.parametrize("reply", ["manifest", "signature", "file"])
def test_what_a_source_makes_up_is_refused_and_leaves_nothing(scene: Scene, reply: str) -> None:
    """A forged manifest, signature or file; what came of it is removed."""
    release = scene.publish()
    puller, source = reading(scene, Lying)
    payload, _ = scene.store.manifest(release.id)
    forged = {
        "manifest": payload.replace(b"demo", b"domo"),
        "signature": b"A" * 88,
        "file": b"x" * 10**6,
    }
    source.replies = {reply: forged[reply]}

    with pytest.raises(ReleaseError):
        puller.pull("demo")
    left = {path.name for path in (scene.path / "home").rglob("*") if path.is_file()}
    assert left == {"seen.json", "seen.lock"}


def test_another_release_than_the_one_asked_for_is_refused(scene: Scene) -> None:
    """Even though the publisher has signed it, too."""
    first = scene.publish(seed=1)
    scene.publish(seed=2)
    puller, source = reading(scene, Lying)
    payload, signature = scene.store.manifest(first.id)
    source.replies = {"manifest": payload, "signature": signature}

    with pytest.raises(ReleaseError, match=f"{first.id[:12]} came"):
        puller.pull("demo")


def test_a_name_that_lists_another_s_release_is_refused(scene: Scene, tmp_path: Path) -> None:
    """As if its publisher had been made to list it; nothing of it is good here."""
    folder = scene.draft(seed=1)
    other = scene.publisher.publish(folder, manifest_of(folder, name="other"))
    scene.publish()
    index = scene.publisher.index("demo").published(other.id, now=scene.now)
    path = scene.store.path / "index" / "demo" / f"{index.version:08}.json"
    path.write_bytes(index.seal(scene.signer))

    for into in (None, tmp_path / "release"):
        with pytest.raises(ReleaseError, match="which is a release of other"):
            scene.puller.pull("demo", into=into)
    with pytest.raises(ReleaseError, match="which is a release of other"):
        scene.puller.manifest("demo")
    assert scene.puller.pull("other", into=tmp_path / "release").id == other.id
    with pytest.raises(ReleaseError, match="which is a release of other"):
        scene.puller.pull("demo", into=tmp_path / "release")


def test_an_older_index_is_refused(scene: Scene) -> None:
    """A registry cannot play back the time before a revocation."""
    release = scene.publish()
    before = scene.store.index("demo")
    scene.publisher.revoke("demo", release.id, reason="it knows a patient's name")
    puller, source = reading(scene, Lying)
    with pytest.raises(ReleaseError, match="a patient's name"):
        puller.pull("demo")
    source.replies = {"index": before}

    with pytest.raises(ReleaseError, match="version 1, but version 2 was seen"):
        puller.pull("demo")


def test_two_indices_of_one_version_are_refused(scene: Scene) -> None:
    """The publisher has signed both: readers would be told different things."""
    release = scene.publish()
    scene.puller.index("demo")
    index = scene.publisher.index("demo")
    other = index.model_copy(update={"releases": {release.id: index.releases[release.id]}})
    other = other.model_copy(update={"aliases": {}})
    puller, source = reading(scene, Lying)
    source.replies = {"index": other.seal(scene.signer)}

    with pytest.raises(ReleaseError, match="two indices of version 1"):
        puller.pull("demo")


def test_an_expired_index_is_refused(scene: Scene) -> None:
    """Until its publisher renews it."""
    now = scene.now
    scene.now = now - LIFETIME - timedelta(days=1)
    scene.publish()
    with pytest.raises(ReleaseError, match="expired"):
        scene.puller.pull("demo")

    scene.now = now
    scene.publisher.renew("demo")
    scene.puller.pull("demo")


def test_the_index_of_another_name_is_refused(scene: Scene) -> None:
    """It is signed, but not what was asked for."""
    scene.publish(seed=1)
    scene.publish(seed=2, name="other")
    puller, source = reading(scene, Lying)
    source.replies = {"index": scene.store.index("other")}

    with pytest.raises(ReleaseError, match="index of demo was asked for; this is of other"):
        puller.pull("demo")


@pytest.mark.parametrize("text", ["nonsense", '{"key": {"demo": {"version": "x"}}}', "[]"])
def test_a_damaged_memory_is_not_forgotten_silently(scene: Scene, text: str) -> None:
    """The message says what goes with the file."""
    scene.publish()
    (scene.path / "home").mkdir()
    (scene.path / "home" / "seen.json").write_text(text, encoding="utf-8")

    with pytest.raises(ReleaseError, match="protection against older ones"):
        scene.puller.pull("demo")


@pytest.mark.parametrize("reference", ["", "@", "demo@", "a/b", "demo@a@b", "../x", "demo@ü"])
def test_a_reference_has_a_form(scene: Scene, reference: str) -> None:
    """The message shows one."""
    with pytest.raises(ReleaseError, match="demo@production"):
        scene.puller.pull(reference)


def test_what_was_seen_is_a_small_file(scene: Scene) -> None:
    """By publisher and name."""
    scene.publish()
    scene.puller.index("demo")

    seen = json.loads((scene.path / "home" / "seen.json").read_text(encoding="utf-8"))
    assert seen[scene.signer.public.text]["demo"]["version"] == 1
