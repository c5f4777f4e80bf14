"""Making an aggregator's folder, and renewing its certificates."""

import secrets
from collections.abc import Sequence
from pathlib import Path

from fedlora import atomic
from fedlora.document import write_yaml
from fedlora.errors import RunError
from fedlora.release.registry.callers import Callers
from fedlora.release.registry_file import RegistryFile
from fedlora.release.store import new_store
from fedlora.runtime.server.authority import SERVER_DAYS, Authority, KeyPair
from fedlora.runtime.server.bundle import invite
from fedlora.runtime.server.configuration import Configuration
from fedlora.runtime.server.folder import ServerFolder
from fedlora.signing import new_key

_LOOPBACK = "127.0.0.1", "localhost"


def install(path: Path, configuration: Configuration, *, sites: Sequence[str]) -> ServerFolder:
    """Make an aggregator's folder, with a join bundle for each site.

    It appears whole or not at all.

    Raises:
        RunError: there is something at ``path`` already.
        StorageError: it cannot be written.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise RunError(
            f"{path}: there is something already, and it would not be safe to write over it. "
            "Choose a new folder, or invite further sites with fedlora server invite."
        )
    with atomic.private_folder(path) as temporary:
        folder = ServerFolder(temporary)
        for made in (folder.directory, folder.bundles, folder.runs, folder.logs, folder.state):
            made.mkdir()
        text = write_yaml(configuration.model_dump(mode="json"))
        atomic.write_file(folder.configuration, text)
        authority = Authority.new()
        _write_pair(folder.ca_certificate, authority.pair())
        _write_servers(folder, authority, days=SERVER_DAYS)
        new_key(folder.aggregator_key)
        _make_store(folder, configuration)
        atomic.write_secret(folder.superexec_secret, secrets.token_bytes(32))
        for site in sites:
            invite(folder, site)
    return ServerFolder(path)


def renew(folder: ServerFolder, *, days: int, ca_key: Path | None = None) -> None:
    """Make new keys and certificates for the front and for SuperLink.

    Sites notice nothing: the authority that they trust stays the same.

    Args:
        folder: The aggregator's.
        days: How long the certificates last.
        ca_key: The authority's key, if it is not in the folder.

    Raises:
        RunError: the authority's key or certificate is missing or wrong.
    """
    key = ca_key or folder.ca_key
    authority = Authority.read(certificate=folder.ca_certificate, key=key)
    _write_servers(folder, authority, days=days)


def _make_store(folder: ServerFolder, configuration: Configuration) -> None:
    """Make an empty store of releases, and what the registry and its readers need."""
    publisher = new_store(folder.store, key=folder.publisher_key)
    Callers(callers=()).write(folder.callers)
    RegistryFile(
        publisher=publisher.text,
        address=configuration.registry_address,
        ca_certificate=folder.ca_certificate.read_text(encoding="ascii"),
    ).write(folder.registry)


def _write_servers(folder: ServerFolder, authority: Authority, *, days: int) -> None:
    names = Configuration.read(folder.configuration).names
    _write_pair(folder.front_certificate, authority.issue(names, days=days))
    _write_pair(folder.superlink_certificate, authority.issue(_LOOPBACK, days=days))


def _write_pair(certificate: Path, pair: KeyPair) -> None:
    """Write a key and its certificate; if this stops between the two, the next renewal mends it."""
    key = certificate.with_suffix(".key")
    with atomic.storage_errors(key):
        key.unlink(missing_ok=True)
    atomic.write_secret(key, pair.key)
    atomic.write_file(certificate, pair.certificate)
