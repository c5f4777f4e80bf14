"""Where a user's releases come from and are kept: a registry file, and a folder at home."""

import os
from pathlib import Path

from fedlora.errors import ReleaseError
from fedlora.release.folder import Release
from fedlora.release.publisher import Publisher
from fedlora.release.pull import Puller
from fedlora.release.registry.client import Identity, RegistryClient
from fedlora.release.registry_file import RegistryFile, registry_path
from fedlora.release.seen import SEEN, Seen
from fedlora.release.source import Target
from fedlora.release.store import Store
from fedlora.signing import PublicKey, Signer

ENVIRONMENT = "FEDLORA_HOME"


def home() -> Path:
    """Return the folder for what was pulled and what was seen of registries."""
    named = os.environ.get(ENVIRONMENT)
    return Path(named).expanduser() if named else Path.home() / ".fedlora"


def target_of(registry: Path | None) -> tuple[Target, RegistryFile]:
    """Return the store or registry that a user means, and what its file says.

    Args:
        registry: a registry file or a store's folder; by default what ``FEDLORA_REGISTRY`` names.

    Raises:
        ReleaseError: none is named, or the file says something else.
    """
    path = registry_path(registry)
    file = RegistryFile.read(path)
    if file.address is None:
        return Store(path.parent, key=file.key), file
    ca = file.ca_certificate.encode() if file.ca_certificate else None
    identity = None
    if file.client_certificate and file.client_key:
        identity = Identity(
            certificate=file.client_certificate.encode(), key=file.client_key.encode()
        )
    client = RegistryClient(file.address, key=file.key, ca=ca, token=file.token, identity=identity)
    return client, file


def publisher(registry: Path | None, signer: Signer, *, memory: Path | None = None) -> Publisher:
    """Return what publishes there.

    Args:
        registry: as for ``target_of``.
        signer: the publishing key.
        memory: a folder for what is remembered of it; by default the user's.

    Raises:
        ReleaseError: none is named, the file says something else, or its publisher has another
            key.
    """
    target, file = target_of(registry)
    if signer.public != file.key:
        raise ReleaseError(
            f"The publishing key is {signer.public.fingerprint}, but the registry's publisher is "
            f"{file.key.fingerprint}: take the key that the registry was made with."
        )
    return Publisher(target, signer, seen=Seen((memory or home()) / SEEN))


def puller(registry: Path | None) -> Puller:
    """Return what fetches releases from there; errors as ``target_of``."""
    source, file = target_of(registry)
    return Puller(source, file.key, home=home())


def publisher_key(named: str | None, *, registry: Path | None) -> PublicKey:
    """Return the publisher's public key: as text, in a file, or of the registry file.

    Raises:
        EnrolmentError: it is no key.
        ReleaseError: none is named.
    """
    if named is None:
        return RegistryFile.read(registry_path(registry)).key
    return PublicKey.read(Path(named)) if Path(named).is_file() else PublicKey.of(named)


def pull(reference: str, *, registry: Path | None = None, into: Path | None = None) -> Release:
    """Return a verified release; errors as ``target_of`` and ``Puller.pull``."""
    return puller(registry).pull(reference, into=into)
