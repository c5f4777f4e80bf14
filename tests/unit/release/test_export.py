"""Releases arrive whole, with manifest and signature; the network's edge is played by fakes."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import httpx
import pytest
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from fedlora.errors import ReleaseError
from fedlora.peft_config import CONFIG
from fedlora.release import export
from fedlora.release.folder import Release, verify
from fedlora.release.manifest import MANIFEST
from simulations.published import Scene, manifest_of

REQUEST = httpx.Request("POST", "https://huggingface.co")


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene.new(tmp_path)


@pytest.fixture
def release(scene: Scene) -> Release:
    return scene.publish()


class Hub:
    """What of ``huggingface_hub.HfApi`` is used, over a dictionary."""

    def __init__(self) -> None:
        self.private: dict[str, bool] = {}
        self.files: dict[str, set[str]] = {}
        self.tags: dict[str, dict[str, str]] = {}
        self.refuses: Exception | None = None

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        if self.refuses:
            raise self.refuses
        assert exist_ok or repo_id not in self.private
        self.private.setdefault(repo_id, private)

    def repo_info(self, repo_id: str) -> SimpleNamespace:
        return SimpleNamespace(private=self.private[repo_id])

    def upload_folder(
        self, *, repo_id: str, folder_path: Path, commit_message: str, delete_patterns: str
    ) -> SimpleNamespace:
        kept = set() if delete_patterns == "*" else self.files.get(repo_id, set())
        self.files[repo_id] = kept | {path.name for path in folder_path.iterdir()}
        return SimpleNamespace(oid=f"commit of {commit_message}")

    def create_tag(self, repo_id: str, *, tag: str, revision: str, exist_ok: bool) -> None:
        assert exist_ok
        self.tags.setdefault(repo_id, {})[tag] = revision


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub()
    monkeypatch.setattr(export, "HfApi", lambda: hub)
    return hub


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_hub_gets_a_private_repository_with_the_release(hub: Hub, release: Release) -> None:
    """And a tag that stays with it when the next release comes."""
    hub.private["me/demo"], hub.files["me/demo"] = True, {"old.bin"}
    address = export.to_hub(release, "me/demo")
    export.to_hub(release, "me/new")

    tag = release.id[:12]
    assert address == f"https://huggingface.co/me/demo/tree/{tag}"
    assert hub.private == {"me/demo": True, "me/new": True}
    assert hub.files["me/demo"] == names_in(release.folder)
    assert hub.tags["me/demo"] == {tag: f"commit of demo {tag}"}


def test_nothing_is_published_to_the_world_unasked(hub: Hub, release: Release) -> None:
    """Also where the repository is there already and public."""
    hub.private["me/open"] = False
    with pytest.raises(ReleaseError, match="me/open is public"):
        export.to_hub(release, "me/open")
    assert hub.files == {}

    export.to_hub(release, "me/open", public=True)
    assert hub.files["me/open"] == names_in(release.folder)


@pytest.mark.parametrize(
    "error",
    [
        HfHubHTTPError("403 Forbidden", response=httpx.Response(403, request=REQUEST)),
        httpx.ConnectError("no route to host"),
        HFValidationError("Repo id must be in the form"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_the_hub_refuses_is_an_error(error: Exception, hub: Hub, release: Release) -> None:
    """With what it said."""
    hub.refuses = error
    with pytest.raises(ReleaseError, match=rf"the Hub did not take it \({error}"):
        export.to_hub(release, "me/demo")


class Oras:
    """What of ``oras.client.OrasClient`` is used; it reads what it is given."""

    pushed: Mapping[str, Any]
    refuses = False

    def push(self, target: str, **options: Any) -> SimpleNamespace:
        if Oras.refuses:
            raise ValueError("Issue with https://registry/v2/: Unauthorized")
        files = [text.rpartition(":") for text in options.pop("files")]
        config, _, kind = options.pop("manifest_config").rpartition(":")
        Oras.pushed = {
            "target": target,
            "files": {Path(path).name: kind for path, _, kind in files},
            "bytes": {Path(path).name: Path(path).read_bytes() for path, _, _ in files},
            "config": (Path(config).read_bytes(), kind),
            **options,
        }
        return SimpleNamespace(headers={"Docker-Content-Digest": "sha256:12"})


@pytest.fixture
def oras(monkeypatch: pytest.MonkeyPatch) -> type[Oras]:
    package, client = ModuleType("oras"), ModuleType("oras.client")
    client.OrasClient = Oras  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "oras", package)
    monkeypatch.setitem(sys.modules, "oras.client", client)
    monkeypatch.setattr(Oras, "refuses", False)
    return Oras


def test_a_container_registry_gets_every_file_and_the_manifest_as_configuration(
    oras: type[Oras], release: Release
) -> None:
    """So that the configuration's digest is the release."""
    where = export.to_oci(release, "registry/me/demo:production")
    pushed = oras.pushed

    assert where == "registry/me/demo:production@sha256:12"
    assert pushed["target"] == "registry/me/demo:production"
    assert pushed["bytes"] == {p.name: p.read_bytes() for p in release.folder.iterdir()}
    assert pushed["files"]["README.md"] == "text/markdown"
    assert pushed["config"] == (
        (release.folder / MANIFEST).read_bytes(),
        "application/vnd.fedlora.release.v1+json",
    )
    assert pushed["manifest_annotations"]["dev.fedlora.release.id"] == release.id
    assert pushed["manifest_annotations"]["org.opencontainers.image.title"] == "demo"
    assert all(isinstance(value, str) for value in pushed["manifest_annotations"].values())


def test_what_a_registry_refuses_is_an_error(oras: type[Oras], release: Release) -> None:
    """With what it said."""
    oras.refuses = True
    with pytest.raises(ReleaseError, match=r"the registry did not take it .*Unauthorized"):
        export.to_oci(release, "registry/me/demo:1")


def test_without_oras_the_error_says_what_to_install(
    release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is an extra."""
    monkeypatch.setitem(sys.modules, "oras", None)
    monkeypatch.setitem(sys.modules, "oras.client", None)
    with pytest.raises(ReleaseError, match=r"pip install 'fedlora\[oci\]'"):
        export.to_oci(release, "registry/me/demo:1")


def test_ollama_gets_a_modelfile_beside_the_release(
    scene: Scene, release: Release, tmp_path: Path
) -> None:
    """The base is what Ollama calls it; the release can still be verified."""
    modelfile = export.to_ollama(release, tmp_path / "out", base="llama3.1:8b")

    lines = modelfile.read_text(encoding="utf-8").splitlines()
    assert lines[-2:] == ["FROM llama3.1:8b", "ADAPTER ./adapter"]
    assert verify(tmp_path / "out" / "adapter", key=scene.signer.public).id == release.id
    export.to_ollama(release, tmp_path / "named")
    assert "FROM embedded\n" in (tmp_path / "named" / "Modelfile").read_text(encoding="utf-8")


def test_ollama_gets_nothing_that_it_would_not_load(scene: Scene, tmp_path: Path) -> None:
    """The lint's finding is the error, and no folder is made."""
    draft = scene.draft(seed=7)
    config = json.loads((draft / CONFIG).read_text(encoding="utf-8")) | {"use_rslora": True}
    (draft / CONFIG).write_text(json.dumps(config), encoding="utf-8")
    release = scene.publisher.publish(draft, manifest_of(draft))

    with pytest.raises(ReleaseError, match="use_rslora"):
        export.to_ollama(release, tmp_path / "out")
    assert not (tmp_path / "out").exists()
