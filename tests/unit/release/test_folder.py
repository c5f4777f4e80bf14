"""A release's folder is what was signed, to the byte, or it is refused by name."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from fedlora.errors import ReleaseError
from fedlora.release.folder import SIGNATURE, sign_folder, verify
from fedlora.release.manifest import MANIFEST
from fedlora.signing import Signer, new_key
from simulations.published import Scene, manifest_of


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene.new(tmp_path)


@pytest.fixture
def folder(scene: Scene) -> Path:
    """A signed release."""
    folder = scene.draft()
    sign_folder(folder, manifest_of(folder), signer=scene.signer)
    return folder


def test_a_signed_release_is_verified(scene: Scene, folder: Path) -> None:
    """Its identity is the digest of its manifest."""
    release = verify(folder, key=scene.signer.public)

    assert release.manifest == manifest_of(folder)
    assert release.id == manifest_of(folder).release


def test_the_signature_of_another_is_refused(scene: Scene, folder: Path, tmp_path: Path) -> None:
    """The message says whose it should have been."""
    other = new_key(tmp_path / "other.key")

    with pytest.raises(ReleaseError, match=re.escape(other.fingerprint[:20])):
        verify(folder, key=other)


def test_each_flipped_byte_is_refused(scene: Scene, folder: Path) -> None:
    """Of manifest, signature, card and configuration each one; of the weights every hundredth."""
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        for position in range(0, len(content), 1 if len(content) < 2000 else 100):
            changed = bytearray(content)
            changed[position] ^= 1
            path.write_bytes(changed)
            with pytest.raises(ReleaseError):
                verify(folder, key=scene.signer.public)
        path.write_bytes(content)
    verify(folder, key=scene.signer.public)


def _link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


@pytest.mark.parametrize("name", ["adapter_model.safetensors", MANIFEST, SIGNATURE])
@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(Path.unlink, id="missing"),
        pytest.param(_link, id="link"),
        pytest.param(lambda path: (path.unlink(), path.mkdir()), id="folder"),
        pytest.param(lambda path: (path.unlink(), os.mkfifo(path)), id="pipe"),
        pytest.param(lambda path: path.write_bytes(b""), id="empty"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes() + b" "), id="longer"),
    ],
)
def test_what_is_no_file_of_the_release_is_refused(
    scene: Scene, folder: Path, name: str, spoil: Callable[[Path], object]
) -> None:
    """Missing, a link, a folder, a pipe (which would wait for ever), empty or longer."""
    spoil(folder / name)

    with pytest.raises(ReleaseError, match=str(folder)):
        verify(folder, key=scene.signer.public)


@pytest.mark.parametrize("name", ["extra.bin", ".hidden", "tokenizer.json"])
def test_a_file_that_nobody_signed_is_refused(scene: Scene, folder: Path, name: str) -> None:
    """Serving engines would read a tokenizer that is put there."""
    (folder / name).write_text("x", encoding="utf-8")

    with pytest.raises(ReleaseError, match="the manifest knows no such file"):
        verify(folder, key=scene.signer.public)


def test_a_manifest_in_another_spelling_is_refused(scene: Scene, folder: Path) -> None:
    """Even if it is signed: of two spellings, one would not be found again."""
    signer = Signer.load(scene.path / "publisher.key")
    manifest = manifest_of(folder)
    sign_folder(folder, manifest, signer=_Spaced(signer))  # type: ignore[arg-type]
    (folder / MANIFEST).write_bytes(manifest.to_json() + b"\n")

    with pytest.raises(ReleaseError, match="canonical JSON"):
        verify(folder, key=scene.signer.public)


class _Spaced:
    """Signs what it is given, with a line break after it."""

    def __init__(self, signer: Signer) -> None:
        self._signer = signer

    def sign(self, message: bytes) -> bytes:
        head, _, payload = message.partition(b"{")
        kind, _, _ = head.rpartition(b" ")
        kind, _, length = kind.rpartition(b" ")
        return self._signer.sign(b"%b %d {%b\n" % (kind, int(length) + 1, payload))
