"""Safetensors files: their headers, read with distrust, and the pieces that are written in turn.

safetensors' own writer copies all tensors first, which the aggregator's memory has no room for, and
on a full disk it raises an error of its own instead of ``OSError``.
"""

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fedlora.errors import AdapterError

_DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64"}
_LONGEST_HEADER = 8 * 2**20
"""Bytes."""


def pieces(
    tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None
) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a safetensors file with these tensors; none of them is copied.

    Args:
        tensors: contiguous, on the CPU, of float32, float64 or int64.
        metadata: what the file says of itself, such as ``{"format": "pt"}``.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        dtype, shape = _DTYPES[tensor.dtype], list(tensor.shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for tensor in tensors.values():
        yield tensor.numpy().reshape(-1).view("u1").data


def read_header(path: Path) -> dict[str, Any]:
    """Return the dtype and shape of each tensor in a file, without trusting the header's length.

    Raises:
        AdapterError: it is no safetensors file.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(_LONGEST_HEADER, path.stat().st_size):
            raise AdapterError(f"{path}: a header of {length:,} bytes is not plausible.")
        try:
            header = json.loads(file.read(length))
            with safe_open(path, framework="pt"):
                pass  # it checks the offsets
        except (ValueError, RecursionError, SafetensorError) as error:
            raise AdapterError(f"{path}: this is not a safetensors file ({error}).") from None
    if not isinstance(header, dict):
        raise AdapterError(f"{path}: this is not a safetensors file.")
    header.pop("__metadata__", None)
    return header
