"""Keys that two sites agree on, and what one seals for the other."""

from dataclasses import dataclass, field
from typing import Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedlora.errors import SecureSumError

KEY_BYTES = 32
"""Of every key and secret here, public or private."""
SEAL_BYTES = 16
"""By which a sealed message is longer than what it holds."""
_NONCE = bytes(12)


@dataclass(frozen=True, kw_only=True, repr=False)
class KeyPair:
    """A key for agreements (X25519), fresh for each attempt at a sum.

    References:
        RFC 7748, sections 5 and 6.1.
    """

    private: bytes
    """32 bytes."""
    public: bytes
    """32 bytes."""
    _key: X25519PrivateKey = field(compare=False)
    """The private key, read once: that takes as long as an agreement."""

    @classmethod
    def generate(cls) -> Self:
        """Return a new pair, from the operating system's randomness."""
        return cls._of(X25519PrivateKey.generate())

    @classmethod
    def of(cls, private: bytes) -> Self:
        """Return the pair that a private key belongs to.

        Raises:
            SecureSumError: it is not 32 bytes long.
        """
        try:
            return cls._of(X25519PrivateKey.from_private_bytes(private))
        except ValueError:
            raise SecureSumError(_expected("a private key", private)) from None

    @classmethod
    def _of(cls, key: X25519PrivateKey) -> Self:
        public = key.public_key().public_bytes_raw()
        return cls(private=key.private_bytes_raw(), public=public, _key=key)

    def agree(self, peer_public: bytes, *, about: bytes) -> bytes:
        """Return the key that this pair and a peer's have in common.

        Guarantees:
            - Both sides get the same 32 bytes for the same ``about``, and unrelated ones for
              another.
            - A peer's key that would make a known one of it (of low order) is refused.

        Args:
            peer_public: 32 bytes, of whose origin the caller is sure.
            about: what the key is for: its use, and all that both sides must see alike.

        Raises:
            SecureSumError: the peer's key is not 32 bytes long, or of low order.

        References:
            RFC 7748, section 6.1; the key is ``derive``d from the shared secret.
        """
        try:
            peer = X25519PublicKey.from_public_bytes(peer_public)
        except ValueError:
            raise SecureSumError(_expected("a peer's public key", peer_public)) from None
        try:
            secret = self._key.exchange(peer)
        except ValueError:  # all zero
            raise SecureSumError(
                "A peer's public key is of low order: with it a key would be known to everybody. "
                "No honest peer makes one; leave it out of the cohort."
            ) from None
        return derive(secret, about=about)


def derive(secret: bytes, *, about: bytes) -> bytes:
    """Return a key of 32 bytes from a secret, unrelated to those about anything else.

    References:
        RFC 5869 (HKDF-SHA256), without a salt; ``about`` is its info.
    """
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=about).derive(secret)


def seal(key: bytes, plain: bytes, *, about: bytes) -> bytes:
    """Return a message that only a holder of the key can read, or have written.

    It is 16 bytes longer. The nonce is zero: a key must seal one message only.

    Args:
        key: 32 bytes, as ``KeyPair.agree`` returns them; for each direction one of its own.
        plain: the message.
        about: what both sides must see alike; it is not in the result.

    References:
        RFC 8439, section 2.8 (ChaCha20-Poly1305).
    """
    return ChaCha20Poly1305(key).encrypt(_NONCE, plain, about)


def unseal(key: bytes, sealed: bytes, *, about: bytes) -> bytes:
    """Return what a peer has sealed.

    Raises:
        SecureSumError: it was sealed with another key or about something else, or was changed.
    """
    try:
        return ChaCha20Poly1305(key).decrypt(_NONCE, sealed, about)
    except InvalidTag:
        raise SecureSumError(
            "A sealed message cannot be opened: it was changed on its way, or its sender sees "
            "another cohort, round or adapter. Leave the sender out, or begin anew."
        ) from None


def _expected(what: str, came: bytes) -> str:
    return f"As {what} {KEY_BYTES} bytes were expected, but {len(came)} came."
