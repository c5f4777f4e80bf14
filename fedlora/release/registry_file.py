"""``registry.yaml``: where releases are, and whose word is believed about them.

An application team gets it from the consortium; the store has one in its folder. It is the one
thing that is trusted: with it, everything else is verified.
"""

import os
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, model_validator

from fedlora import atomic
from fedlora.document import read_section, write_yaml
from fedlora.errors import ReleaseError
from fedlora.release.credentials import as_certificates, as_pair, as_token
from fedlora.sections import Section
from fedlora.signing import PublicKey, RawKey

FILE = "registry.yaml"
ENVIRONMENT = "FEDLORA_REGISTRY"


def _certificates(pem: str) -> str:
    return as_certificates(pem).decode()


class RegistryFile(Section):
    """What the file says."""

    publisher: RawKey
    """The publisher's Ed25519 public key, in base64."""
    address: str | None = None
    """``host:port`` of a registry; without it, the store is the folder that the file is in."""
    ca_certificate: Annotated[str, AfterValidator(_certificates)] | None = None
    """The PEM certificate that the registry's hangs on; by default one that the system trusts."""
    token: Annotated[str, AfterValidator(as_token)] | None = None
    """What the registry asks for."""
    client_certificate: str | None = None
    """A PEM certificate, where the registry asks callers for one."""
    client_key: str | None = None
    """Its private key, in PEM."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        shown = (self.ca_certificate, self.token, self.client_certificate, self.client_key)
        if not self.address and any(shown):
            raise ValueError(
                "ca_certificate, token, client_certificate and client_key are of a registry: name "
                "its address too"
            )
        if self.client_certificate or self.client_key:
            try:
                as_pair(self.client_certificate or "", self.client_key or "")
            except ValueError as error:
                raise ValueError(f"client_certificate and client_key: {error}") from None
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
        """Write it; its owner alone can read it if there is a secret in it.

        Raises:
            StorageError: it cannot be written.
        """
        text = write_yaml(self.model_dump(exclude_none=True))
        if self.token or self.client_key:
            atomic.replace_secret(path, text)
        else:
            atomic.write_file(path, text)


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
