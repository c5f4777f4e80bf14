"""Where the randomness of differential privacy comes from: noise, and who is drawn."""

import hashlib
import os
from typing import Self

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray
from torch import Tensor

_DRAWS = 4
"""Normal draws that are summed for each value."""
_CHUNK = 2**15
"""Values that are made at once: their parts stay in a processor's cache."""
_FRACTION_BITS = 53
_KEY_BYTES, _NONCE_BYTES = 32, 16


class KeyStream:
    """Random bits from AES-256 in counter mode, as normal noise and as Poisson samples.

    Guarantees:
        - With a key of the operating system's no draw can be predicted from other draws (NIST SP
          800-38A, section 6.5); the key is in this object alone and is never written anywhere.
        - A forked process does not repeat its parent's draws: it takes a key of its own.

    What it does not guarantee: floating-point numbers are not reals. Low bits of a single normal
    draw can tell what it was added to (Mironov 2012, doi:10.1145/2382196.2382264). Each value is
    therefore the sum of four independent draws, which makes that attack take far more work
    (Holohan and Braghin 2021, arXiv:2107.10138, section 5.2). This is a mitigation, not a proof.
    """

    def __init__(self, key: bytes) -> None:
        self._stream, self._process = _stream(key), os.getpid()

    @classmethod
    def secure(cls) -> Self:
        """Return a stream with a fresh key of the operating system's."""
        return cls(os.urandom(_KEY_BYTES))

    @classmethod
    def reproducible(cls, seed: str) -> Self:
        """Return a stream that repeats itself. It protects nobody: for tests and studies alone."""
        return cls(hashlib.sha256(seed.encode()).digest())

    def gaussian(self, count: int) -> Tensor:
        """Return ``(count,)`` float64 of independent standard normal values.

        By Box and Muller 1958 (doi:10.1214/aoms/1177706645) on 53-bit uniform numbers.
        """
        values = torch.empty(count, dtype=torch.float64)
        for part in values.split(_CHUNK):
            self._fill(part)
        return values

    def poisson_sample(self, count: int, rate: float) -> list[int]:
        """Return which of ``count`` units are drawn, each independently with probability ``rate``.

        Rounded down to a multiple of 2⁻⁶⁴.
        """
        if rate >= 1:
            return list(range(count))
        drawn = self.bits(count) < np.uint64(rate * 2.0**64)
        return np.flatnonzero(drawn).tolist()

    def bits(self, count: int) -> NDArray[np.uint64]:
        """Return ``(count,)`` uniform 64-bit numbers."""
        if os.getpid() != self._process:
            self._stream, self._process = _stream(os.urandom(_KEY_BYTES)), os.getpid()
        return np.frombuffer(self._stream.update(bytes(8 * count)), np.uint64)

    def secret(self) -> str:
        """Return a seed of 256 bits for other generators, such as that of dropout."""
        return self.bits(4).tobytes().hex()

    def _fill(self, values: Tensor) -> None:
        pairs = _DRAWS // 2
        bits = self.bits(2 * pairs * len(values)).reshape(2, pairs, len(values))
        above_zero = (bits >> np.uint64(64 - _FRACTION_BITS)) + np.uint64(1)
        uniform = torch.from_numpy(above_zero.astype(np.float64)).mul_(2.0**-_FRACTION_BITS)
        radius = uniform[0].log_().mul_(-2).sqrt_()
        angle = uniform[1].mul_(2 * torch.pi)
        torch.sum(angle.cos().mul_(radius), dim=0, out=values)
        # Flipped, so that no value is made of both draws of one pair.
        values.add_(angle.sin_().mul_(radius).sum(dim=0).flip(0)).div_(_DRAWS**0.5)


def _stream(key: bytes) -> CipherContext:
    return Cipher(AES(key), CTR(bytes(_NONCE_BYTES))).encryptor()
