"""Vectors that hide another as long as their key is secret."""

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

_BLOCK = 2**18
"""Values that are masked at once: 1 MiB, which a processor's cache holds."""
_ZEROS = bytes(4 * _BLOCK)


def add_mask(values: NDArray[np.uint32], key: bytes) -> None:
    """Add a key's mask to a vector in place, modulo 2³²."""
    _apply(np.add, values, key)


def subtract_mask(values: NDArray[np.uint32], key: bytes) -> None:
    """Take a key's mask off a vector in place, modulo 2³²."""
    _apply(np.subtract, values, key)


def _apply(operation: np.ufunc, values: NDArray[np.uint32], key: bytes) -> None:
    stream = Cipher(AES(key), CTR(bytes(16))).encryptor()
    mask = np.empty(min(_BLOCK, len(values)), dtype="<u4")
    for start in range(0, len(values), _BLOCK):
        block = values[start : start + _BLOCK]
        part = mask[: len(block)]
        stream.update_into(memoryview(_ZEROS)[: part.nbytes], part.view(np.uint8).data)
        operation(block, part, out=block)
