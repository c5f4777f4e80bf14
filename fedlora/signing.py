"""Ed25519 keys: who a gate or an aggregator is, and what it has said (RFC 8032)."""

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from pydantic import AfterValidator

from fedlora import atomic
from fedlora.errors import EnrolmentError

_KEY_BYTES = 32


def canonical(facts: Mapping[str, Any]) -> bytes:
    """Return JSON in its one spelling: keys sorted, no spaces, ASCII, floats as Python's ``repr``.

    Raises:
        ValueError: a number is not finite.
    """
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("ascii")


@dataclass(frozen=True)
class PublicKey:
    """Whose word something is."""

    raw: bytes
    """32 bytes."""

    @classmethod
    def of(cls, text: str) -> Self:
        """Read what ``text`` gives.

        Raises:
            EnrolmentError: it is no such key.
        """
        try:
            raw = base64.b64decode(text.strip(), validate=True)
        except ValueError:
            raw = b""
        if len(raw) != _KEY_BYTES or base64.b64encode(raw).decode() != text.strip():
            raise EnrolmentError(
                f"{text.strip()!r:.80}: an Ed25519 public key was expected, 32 bytes in base64, as "
                "in a gate.key.pub."
            )
        return cls(raw)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a key from a file.

        Raises:
            EnrolmentError: there is none.
        """
        try:
            return cls.of(path.read_text(encoding="ascii"))
        except (OSError, UnicodeDecodeError, EnrolmentError) as error:
            raise EnrolmentError(f"{path}: no public key can be read there ({error}).") from None

    @property
    def text(self) -> str:
        """The key in base64."""
        return base64.b64encode(self.raw).decode()

    @property
    def fingerprint(self) -> str:
        """``SHA256:`` and the base64 of the key's digest, for people to compare."""
        return f"SHA256:{base64.b64encode(hashlib.sha256(self.raw).digest()).decode()}"

    def signed(self, message: bytes, signature: bytes) -> bool:
        """Whether the signature is this key's, over exactly this message."""
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, message)
        except InvalidSignature:
            return False
        return True


def _raw_key(text: str) -> str:
    try:
        return PublicKey.of(text).text
    except EnrolmentError as error:
        raise ValueError(str(error)) from None


RawKey = Annotated[str, AfterValidator(_raw_key)]
"""Field of a document that holds a public key: 32 bytes in base64."""


class Signer:
    """Holds a private key."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = PublicKey(key.public_key().public_bytes_raw())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a key from its PEM file.

        Raises:
            EnrolmentError: there is none.
        """
        try:
            key = load_pem_private_key(path.read_bytes(), password=None)
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise EnrolmentError(f"{path}: no private key can be read there ({error}).") from None
        if not isinstance(key, Ed25519PrivateKey):
            raise EnrolmentError(f"{path}: an Ed25519 key was expected, but it is of another kind.")
        return cls(key)

    def sign(self, message: bytes) -> bytes:
        """Return the signature: 64 bytes, the same for the same message."""
        return self._key.sign(message)


def new_key(path: Path) -> PublicKey:
    """Make a key that its owner alone can read, its public half in ``.pub`` beside it.

    If there is one, it stays.

    Raises:
        EnrolmentError: what is there is no such key.
        StorageError: it cannot be written.
    """
    key = Ed25519PrivateKey.generate()
    atomic.write_secret(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public = Signer.load(path).public
    atomic.write_file(path.with_name(f"{path.name}.pub"), f"{public.text}\n")
    return public
