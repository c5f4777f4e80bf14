"""What opens a registry's door, as it stands in files: tokens, and certificates and keys in PEM."""

import re

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509 import load_pem_x509_certificates

_TOKEN = re.compile("[!-~]{1,1000}")


def as_token(text: str) -> str:
    """Return a token that can be sent in a header.

    Raises:
        ValueError: it cannot; the message does not show it.
    """
    if not _TOKEN.fullmatch(text):
        raise ValueError("letters, digits and signs of ASCII were expected, in one line")
    return text


def as_certificates(pem: str | bytes) -> bytes:
    """Return one certificate or several.

    Raises:
        ValueError: there is none, or one that cannot be read.
    """
    content = pem.encode() if isinstance(pem, str) else pem
    try:
        load_pem_x509_certificates(content)
    except ValueError:
        raise ValueError("certificates in PEM were expected (BEGIN CERTIFICATE)") from None
    return content


def as_pair(certificate: str | bytes, key: str | bytes) -> tuple[bytes, bytes]:
    """Return a certificate, those after it that vouch for it, and its private key.

    Raises:
        ValueError: one cannot be read, or they do not belong together.
    """
    chain = as_certificates(certificate)
    secret = key.encode() if isinstance(key, str) else key
    try:
        public = load_pem_private_key(secret, password=None).public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ValueError("a private key in PEM, without a password, was expected") from None
    if load_pem_x509_certificates(chain)[0].public_key() != public:
        raise ValueError("the first certificate is of another key")
    return chain, secret
