"""Inviting a site: a token, and the join bundle that carries it."""

import secrets
from pathlib import Path

from cryptography import x509

from fedlora import atomic
from fedlora.errors import RunError
from fedlora.runtime.enrolment import JoinBundle, certificate_fingerprint
from fedlora.runtime.server.configuration import Configuration
from fedlora.runtime.server.directory import Directory
from fedlora.runtime.server.folder import ServerFolder
from fedlora.signing import PublicKey


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
    try:
        pem = folder.ca_certificate.read_bytes()
        certificate = x509.load_pem_x509_certificate(pem)
    except (OSError, ValueError) as error:
        raise RunError(
            f"{folder.ca_certificate}: a bundle carries this certificate, but it cannot be read "
            f"({error}). Restore it from a backup."
        ) from error
    public = folder.aggregator_key.with_name(f"{folder.aggregator_key.name}.pub")
    return JoinBundle(
        site=site,
        aggregator=Configuration.read(folder.configuration).address,
        ca_certificate=pem.decode(),
        ca_fingerprint=certificate_fingerprint(certificate),
        aggregator_key=PublicKey.read(public).text,
        token=token,
    )
