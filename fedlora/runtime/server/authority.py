"""The aggregator's certificate authority: what the sites trust, and what it signs."""

import ipaddress
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedlora.errors import RunError
from fedlora.runtime.enrolment import certificate_fingerprint

SERVER_DAYS = 365
"""How long a server certificate lasts if nobody says otherwise."""
_AUTHORITY_DAYS = 3650
_SKEW = timedelta(hours=1)
"""Certificates begin so much in the past: sites' clocks differ."""


@dataclass(frozen=True, kw_only=True)
class KeyPair:
    """A certificate and its private key, both in PEM."""

    certificate: bytes
    key: bytes


@dataclass(frozen=True, kw_only=True, repr=False)
class Authority:
    """An EC P-384 key that signs, and the certificate that says so."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def new(cls) -> Self:
        """Make an authority that may sign server certificates, and no further authority."""
        key = ec.generate_private_key(ec.SECP384R1())
        name = _name("fedlora aggregator CA")
        usage = _usage(signs_certificates=True)
        certificate = (
            _builder(subject=name, issuer=name, key=key.public_key(), days=_AUTHORITY_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .sign(key, hashes.SHA384())
        )
        return cls(key=key, certificate=certificate)

    @classmethod
    def read(cls, *, certificate: Path, key: Path) -> Self:
        """Read an authority from its two PEM files.

        Raises:
            RunError: one is not there or not readable, or they do not belong together.
        """
        try:
            signer = serialization.load_pem_private_key(key.read_bytes(), password=None)
            known = x509.load_pem_x509_certificate(certificate.read_bytes())
        except (OSError, ValueError, TypeError) as error:
            raise RunError(
                f"{key}: the CA's key cannot be read ({error}). If it is kept off this host, "
                "bring it for this command alone, with --ca-key."
            ) from error
        if not isinstance(signer, ec.EllipticCurvePrivateKey) or (
            signer.public_key() != known.public_key()
        ):
            raise RunError(f"{key}: this is not the key of {certificate}. Name the right one.")
        return cls(key=signer, certificate=known)

    def pair(self) -> KeyPair:
        """Return certificate and key as they are kept."""
        return _pair(self.certificate, self.key)

    def issue(self, names: Sequence[str], *, days: int) -> KeyPair:
        """Make a key and sign a server's certificate for it.

        Args:
            names: Names and IP addresses that it is for; the first is its subject.
            days: How long it lasts.
        """
        key = ec.generate_private_key(ec.SECP384R1())
        issuer = self.certificate.subject
        signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        certificate = (
            _builder(subject=_name(names[0]), issuer=issuer, key=key.public_key(), days=days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName(map(_general_name, names)), critical=False)
            .add_extension(signer, critical=False)
            .sign(self.key, hashes.SHA384())
        )
        return _pair(certificate, key)


def days_left(certificate: Path) -> int:
    """Return for how many more days a certificate is good; negative if it is not.

    Raises:
        RunError: it cannot be read.
    """
    return (_read(certificate).not_valid_after_utc - datetime.now(UTC)).days


def fingerprint_of(certificate: Path) -> str:
    """Return the SHA-256 of a certificate, in hexadecimal, as a site's bundle has it.

    Raises:
        RunError: it cannot be read.
    """
    return certificate_fingerprint(_read(certificate))


def _read(certificate: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(certificate.read_bytes())
    except (OSError, ValueError) as error:
        raise RunError(
            f"{certificate}: this certificate cannot be read ({error}). Restore it from a backup; "
            "fedlora server renew makes new ones of the servers."
        ) from error


def _builder(
    *, subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common: str) -> x509.Name:
    """Return a subject; the standard allows 64 letters."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common[:64])])


def _general_name(name: str) -> x509.GeneralName:
    with suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(name))
    return x509.DNSName(name)


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> KeyPair:
    return KeyPair(
        certificate=certificate.public_bytes(serialization.Encoding.PEM),
        key=key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )
