"""Who calls: the front looks at a SuperNode's signature before it takes anything from it.

SuperLink checks the same again, but only once it has read the whole body into memory.
"""

import base64
import time
from collections.abc import Mapping
from datetime import UTC, datetime

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedlora.runtime.server.directory import Directory

PUBLIC_KEY = "flwr-public-key"
SIGNATURE = "flwr-signature"
TIMESTAMP = "flwr-timestamp"

_OLDEST_S = 305
_NEWEST_S = -5
"""SuperLink's window for a timestamp's age, ``SYSTEM_TIME_TOLERANCE`` included."""
_STALE_S = 1
"""The directory is read again after so long, should its time stamp be too coarse to tell."""


class Callers:
    """The admitted sites, by the key that their SuperNode signs with."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._sites: Mapping[str, str] = {}
        self._read_at = -float("inf")
        self._read_from = -1

    def site_of(self, headers: Mapping[str, str]) -> str | None:
        """Return the admitted site that signed a request's headers; None if there is none.

        Raises:
            EnrolmentError: the directory is damaged.
        """
        try:
            key = serialization.load_pem_public_key(_decoded(headers[PUBLIC_KEY]))
            signed_at = headers[TIMESTAMP]
            age = (datetime.now(UTC) - datetime.fromisoformat(signed_at)).total_seconds()
            if not isinstance(key, ec.EllipticCurvePublicKey) or not _NEWEST_S < age < _OLDEST_S:
                return None
            site = self._known().get(_openssh(key))
            if site is not None:
                signature = _decoded(headers[SIGNATURE])
                key.verify(signature, signed_at.encode("ascii"), ec.ECDSA(hashes.SHA256()))
        except (KeyError, TypeError, ValueError, InvalidSignature, UnsupportedAlgorithm):
            return None
        return site

    def _known(self) -> Mapping[str, str]:
        stamp = self._directory.changed_at()
        if stamp != self._read_from or time.monotonic() - self._read_at > _STALE_S:
            self._sites = self._directory.admitted_keys()
            self._read_at, self._read_from = time.monotonic(), stamp
        return self._sites


def _decoded(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _openssh(key: ec.EllipticCurvePublicKey) -> str:
    openssh = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    return key.public_bytes(*openssh).decode()
