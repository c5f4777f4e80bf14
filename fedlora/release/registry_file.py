"""``registry.yaml``: where releases are, and whose word is believed about them.

An application team gets it from the consortium; the store has one in its folder. It is the one
thing that is trusted: with it, everything else is verified.
"""

import os
from pathlib import Path
from typing import Self

from pydantic import model_validator

from fedlora import atomic
from fedlora.document import read_section, write_yaml
from fedlora.errors import ReleaseError
from fedlora.sections import Section
from fedlora.signing import PublicKey, RawKey

FILE = "registry.yaml"
ENVIRONMENT = "FEDLORA_REGISTRY"


class RegistryFile(Section):
    """What the file says."""

    publisher: RawKey
    """The publisher's Ed25519 public key, in base64."""
    address: str | None = None
    """``host:port`` of a registry; without it, the store is the folder that the file is in."""
    ca_certificate: str | None = None
    """The PEM certificate that the registry's hangs on; by default one that the system trusts."""
    token: str | None = None
    """What the registry asks for."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not self.address and (self.ca_certificate or self.token):
            raise ValueError("ca_certificate and token are of a registry: name its address too")
        return self

    @property
    def key(self) -> PublicKey:
        """The publisher's key."""
        return PublicKey.of(self.publisher)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the file.

        Raises:
            ReleaseError: there is none, or it says something else.
        """
        return read_section(
            path,
            cls,
            error=ReleaseError,
            otherwise="The publisher of the releases hands out such a registry file.",
        )

    def write(self, path: Path) -> None:
        """Write it.

        Raises:
            StorageError: it cannot be written.
        """
        atomic.write_file(path, write_yaml(self.model_dump(exclude_none=True)))


def registry_path(named: Path | None) -> Path:
    """Return the registry file that a user means: named, or in the environment.

    Args:
        named: a registry file, or a store's folder.

    Raises:
        ReleaseError: none is named.
    """
    path = named or (Path(os.environ[ENVIRONMENT]) if os.environ.get(ENVIRONMENT) else None)
    if path is None:
        raise ReleaseError(
            "No registry is named: give --registry FILE (the registry.yaml that the publisher "
            f"hands out, or a store's folder), or set {ENVIRONMENT}."
        )
    return path / FILE if path.is_dir() else path
