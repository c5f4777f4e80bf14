"""Inviting a site: a token, and the join bundle that carries it."""

import base64
import secrets
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedlora import atomic
from fedlora.errors import RunError
from fedlora.runtime.enrolment import JoinBundle, certificate_fingerprint
from fedlora.runtime.server.configuration import Configuration
from fedlora.runtime.server.directory import Directory
from fedlora.runtime.server.folder import ServerFolder


def invite(folder: ServerFolder, site: str) -> Path:
    """Expect a site to enrol, and return the join bundle to hand over.

    Of the token, the directory keeps the digest alone. An earlier bundle of the site is void.

    Raises:
        EnrolmentError: the site is admitted, or the name is none.
        RunError: the folder's configuration, certificate or key is missing or wrong.
    """
    token = secrets.token_urlsafe(32)
    Directory(folder).invite(site, token=token)
    text = _bundle(folder, site, token=token).to_yaml()
    path = folder.bundle(site)
    with atomic.storage_errors(path):
        path.unlink(missing_ok=True)
    atomic.write_secret(path, text.encode())
    return path


def _bundle(folder: ServerFolder, site: str, *, token: str) -> JoinBundle:
    public = folder.aggregator_key.with_suffix(".pub")
    try:
        pem = folder.ca_certificate.read_bytes()
        certificate = x509.load_pem_x509_certificate(pem)
        key = serialization.load_pem_public_key(public.read_bytes())
    except (OSError, ValueError) as error:
        raise RunError(
            f"{folder.path}: a bundle carries {folder.ca_certificate.name} and {public.name}, "
            f"but one cannot be read ({error}). Restore it from a backup."
        ) from error
    if not isinstance(key, Ed25519PublicKey):
        raise RunError(f"{public}: this is no Ed25519 public key. Restore it from a backup.")
    return JoinBundle(
        site=site,
        aggregator=Configuration.read(folder.configuration).address,
        ca_certificate=pem.decode(),
        ca_fingerprint=certificate_fingerprint(certificate),
        aggregator_key=base64.b64encode(key.public_bytes_raw()).decode(),
        token=token,
    )
