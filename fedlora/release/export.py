"""A release where others look for models: the Hugging Face Hub, a container registry, Ollama.

What arrives is the release's folder as it is, manifest and signature with it, so that whoever takes
it from there can verify it with the publisher's key alone.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

import httpx
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError

from fedlora import atomic
from fedlora.errors import ReleaseError
from fedlora.release.engines.lint import require_loadable
from fedlora.release.folder import Release
from fedlora.release.manifest import MANIFEST, Manifest
from fedlora.release.sealed import MANIFEST_TYPE

_MEDIA_TYPES = {".json": "application/json", ".md": "text/markdown"}
_BYTES = "application/octet-stream"
_ANNOTATION = "dev.fedlora.release"
_ADAPTER = "adapter"
"""The release's folder beside a Modelfile."""


def to_hub(release: Release, repository: str, *, public: bool = False) -> str:
    """Upload a release to a repository of the Hugging Face Hub, and return its address.

    The repository is made if there is none. Afterwards it holds this release and nothing else, and
    a tag with the release's first 12 digits points to it for good. The token is the Hub's own
    (``hf auth login``, or ``HF_TOKEN``).

    Args:
        release: verified.
        repository: such as ``owner/name``.
        public: whether the world may read it.

    Raises:
        ReleaseError: the Hub refuses it, or the repository is public and was not to be.
    """
    api, tag = HfApi(), release.id[:12]
    try:
        api.create_repo(repository, private=not public, exist_ok=True)
        if not (public or api.repo_info(repository).private):
            raise ReleaseError(
                f"{repository} is public. If the world may read this release, say --public; else "
                "take another repository."
            )
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=release.folder,
            commit_message=f"{release.manifest.name} {tag}",
            delete_patterns="*",
        )
        api.create_tag(repository, tag=tag, revision=commit.oid, exist_ok=True)
    except (httpx.HTTPError, HFValidationError, OSError) as error:
        raise ReleaseError(f"{repository}: the Hub did not take it ({error!s:.300}).") from None
    return f"https://huggingface.co/{repository}/tree/{tag}"


def to_oci(release: Release, reference: str) -> str:
    """Push a release to a container registry, and return the reference with its digest.

    The release's manifest is the artifact's configuration, so that its digest is the release, and
    each file a layer: ``oras pull`` gives the folder again. Credentials are Docker's own
    (``docker login``, ``oras login``).

    Args:
        release: verified.
        reference: such as ``ghcr.io/owner/name:production``.

    Raises:
        ReleaseError: the registry refuses it, or the extra ``oci`` is not installed.
    """
    try:
        from oras.client import OrasClient  # noqa: PLC0415 - an extra
    except ImportError:
        raise ReleaseError(
            "Container registries need the package oras: pip install 'fedlora[oci]'."
        ) from None
    folder = release.folder
    names = sorted(path.name for path in folder.iterdir())
    try:
        response = OrasClient().push(
            reference,
            files=[
                f"{folder / name}:{_MEDIA_TYPES.get(Path(name).suffix, _BYTES)}" for name in names
            ],
            manifest_config=f"{folder / MANIFEST}:{MANIFEST_TYPE}",
            manifest_annotations=annotations(release.manifest),
            disable_path_validation=True,
            quiet=True,
        )
    except (OSError, ValueError) as error:  # of requests, and of oras
        raise ReleaseError(f"{reference}: the registry did not take it ({error!s:.300}).") from None
    return f"{reference}@{response.headers['Docker-Content-Digest']}"


def annotations(manifest: Manifest) -> Mapping[str, str]:
    """Return what a container registry shows of a release (OCI image spec 1.1, annotations)."""
    oci = "org.opencontainers.image"
    return {
        f"{oci}.title": manifest.name,
        f"{oci}.version": manifest.release[:12],
        f"{oci}.created": manifest.created,
        f"{oci}.description": f"LoRA adapter of rank {manifest.adapter.rank} for "
        f"{manifest.base.name}",
        f"{_ANNOTATION}.id": manifest.release,
        f"{_ANNOTATION}.base": manifest.base.name,
        f"{_ANNOTATION}.base-digest": manifest.base.digest,
        f"{_ANNOTATION}.privacy-unit": manifest.privacy.unit,
    }


def to_ollama(release: Release, folder: Path, *, base: str | None = None) -> Path:
    """Write a folder from which ``ollama create NAME -f Modelfile`` makes a model.

    The prompt template is that of the base: Ollama has it with the base, in a language of its own.

    Args:
        release: verified.
        folder: a new one.
        base: what Ollama calls the base, such as ``llama3.1:8b``, or a folder with it; by default
            its name in the manifest.

    Returns:
        The Modelfile.

    Raises:
        ReleaseError: Ollama does not load such an adapter.
        StorageError: the folder cannot be written.
    """
    require_loadable(release.folder, "ollama")
    manifest = release.manifest
    lines = (
        f"# {manifest.name} {release.id}",
        f"# for {manifest.base.name}; the base below must be the same, at full precision if it can",
        f"FROM {base or manifest.base.name}",
        f"ADAPTER ./{_ADAPTER}",
    )
    with atomic.new_folder(folder) as temporary:
        shutil.copytree(release.folder, temporary / _ADAPTER)
        text = "\n".join(lines) + "\n"
        (temporary / "Modelfile").write_text(text, encoding="utf-8")
    return folder / "Modelfile"
