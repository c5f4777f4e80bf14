"""Joining an aggregator: a bundle becomes a site's folder, and its keys are made on the spot."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedlora import atomic
from fedlora.errors import EnrolmentError
from fedlora.runtime.client.folder import SiteFolder
from fedlora.runtime.enrolment import EnrolmentRequest, JoinBundle, State, post
from fedlora.signing import Signer, new_key

_LARGEST_BUNDLE = 1 << 16
"""Bytes; a bundle has about two thousand."""
_REQUEST = "enrolment-request.json"
_PEM, _PLAIN = serialization.Encoding.PEM, serialization.NoEncryption()
_OPENSSH = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
_OPENSSH_PRIVATE = serialization.PrivateFormat.OpenSSH


@dataclass(frozen=True, kw_only=True)
class Enrolment:
    """What came of an enrolment."""

    folder: SiteFolder
    bundle: JoinBundle
    fingerprint: str
    """Of the site's keys: what both operators compare."""
    state: State | None
    """Where the site stands; none if nothing was sent."""
    request: Path | None = None
    """The file to carry to the aggregator, if nothing was sent."""


def read_bundle(path: Path) -> JoinBundle:
    """Read a join bundle as somebody sent it.

    Raises:
        EnrolmentError: it is no bundle, or holds more than a bundle does.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise EnrolmentError(f"{path}: no join bundle can be read there ({error}).") from None
    if size > _LARGEST_BUNDLE or not path.is_file():
        raise EnrolmentError(
            f"{path}: a join bundle is a file of at most {_LARGEST_BUNDLE:,} bytes; this is none."
        )
    if b"PRIVATE KEY" in path.read_bytes():
        raise EnrolmentError(
            f"{path}: there is a private key in it. A bundle never holds one, and a key that was "
            "sent is no longer one site's own. Ask the aggregator's operator what this is."
        )
    return JoinBundle.read(path)


def enrol(path: Path, folder: SiteFolder, *, offline: bool = False) -> Enrolment:
    """Make a site's folder, or go on with one, and send its public keys to the aggregator.

    It can be run again: keys that are there are kept, and the request is the same.

    Args:
        path: of the join bundle.
        folder: where the site's is to be.
        offline: write the request to a file, to be carried to the aggregator.

    Raises:
        EnrolmentError: the bundle is refused, the folder is another site's, or the aggregator
            cannot be reached or refuses.
        StorageError: the folder cannot be written.
    """
    bundle = read_bundle(path)
    _require_free(folder, bundle)
    if bundle.token is None:
        raise EnrolmentError(f"{path}: token is missing: this bundle has been used.")
    _make_folders(folder)
    _make_node_key(folder.node_key)
    new_key(folder.gate_key)
    request = request_of(folder, bundle.site).model_copy(update={"token": bundle.token})
    carried = _written(folder, request) if offline else None
    state = None if offline else post(request, bundle)
    atomic.write_file(folder.join, bundle.without_token().to_yaml())
    _write_example(folder, bundle.site)
    return Enrolment(
        folder=folder,
        bundle=bundle,
        fingerprint=request.fingerprint,
        state=state,
        request=carried,
    )


def request_of(folder: SiteFolder, site: str) -> EnrolmentRequest:
    """Return the request with a site's public keys, without a token.

    Raises:
        EnrolmentError: a key is missing or broken.
    """
    node, gate = _node_key(folder.node_key), Signer.load(folder.gate_key).public
    return EnrolmentRequest(
        site=site,
        node_key=node.public_key().public_bytes(*_OPENSSH).decode(),
        gate_key=gate.text,
    )


def _require_free(folder: SiteFolder, bundle: JoinBundle) -> None:
    """Do nothing if the folder is new, or this very site's of this very aggregator."""
    if not folder.join.exists():
        return
    there = JoinBundle.read(folder.join)
    if there != bundle.without_token():
        raise EnrolmentError(
            f"{folder.path}: this is the folder of site {there.site} at {there.aggregator} (CA "
            f"{there.ca_fingerprint[:16]}…). The bundle is for site {bundle.site} at "
            f"{bundle.aggregator} (CA {bundle.ca_fingerprint[:16]}…): choose another folder with "
            "--dir. If the aggregator has moved or has a new CA, and its operator confirms so by "
            f"another channel, remove {folder.join} first: the keys stay."
        )


def _written(folder: SiteFolder, request: EnrolmentRequest) -> Path:
    """Write a request to a file; its token is the owner's alone to see."""
    path = folder.path / _REQUEST
    with atomic.storage_errors(path):
        path.unlink(missing_ok=True)
    atomic.write_secret(path, request.to_json())
    return path


def _make_folders(folder: SiteFolder) -> None:
    for path in (folder.path, folder.credentials, folder.gate, folder.logs, folder.run):
        with atomic.storage_errors(path):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)


def _make_node_key(path: Path) -> None:
    """Make the key at ``path`` unless there is one, and its public half beside it."""
    if not path.exists():
        made = ec.generate_private_key(ec.SECP384R1())
        atomic.write_secret(path, made.private_bytes(_PEM, _OPENSSH_PRIVATE, _PLAIN))
    public = _node_key(path).public_key().public_bytes(*_OPENSSH)
    atomic.write_file(_public(path), public, b"\n")


def _node_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = _read(path, serialization.load_ssh_private_key)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise _broken(path)
    return key


def _read(path: Path, load: Callable[[bytes, None], object]) -> object:
    try:
        return load(path.read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm):
        raise _broken(path) from None


def _broken(path: Path) -> EnrolmentError:
    return EnrolmentError(
        f"{path}: this key cannot be read. Restore it from a backup; without one, ask the "
        "aggregator's operator to revoke the site and to invite it anew, into a new folder."
    )


def _public(path: Path) -> Path:
    return path.with_name(f"{path.name}.pub")


def _write_example(folder: SiteFolder, site: str) -> None:
    """Give the operator a configuration to fill in, unless there is one."""
    if not folder.configuration.exists():
        text = (files("fedlora.runtime.client") / "site.example.yaml").read_text(encoding="utf-8")
        text = re.sub(r"\A# .*\n", "# What this site has and allows: fill it in.\n", text)
        own = re.sub(r"(?m)^site: \S+", f"site: {site}", text, count=1)
        atomic.write_file(folder.configuration, own)
