"""Safetensors files: their headers, read with distrust, and the pieces that are written in turn.

safetensors' own writer copies all tensors first, which the aggregator's memory has no room for, and
on a full disk it raises an error of its own instead of ``OSError``.
"""

import json
import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fedlora.errors import AdapterError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""What safetensors calls torch's types; of others nothing is written."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}

Layout = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
"""Type and shape of each tensor, in the order in which they lie in the file."""

_LONGEST_HEADER = 8 * 2**20
"""Bytes."""


def pieces(
    tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None
) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a safetensors file with these tensors; none of them is copied.

    Args:
        tensors: contiguous, on the CPU, each of one of ``DTYPES``.
        metadata: what the file says of itself, such as ``{"format": "pt"}``.
    """
    layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    yield header(layout, metadata=metadata)
    for tensor in tensors.values():
        yield raw(tensor)


def header(layout: Layout, *, metadata: Mapping[str, str] | None = None) -> bytes:
    """Return what a safetensors file begins with; the tensors' bytes follow, without gaps."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, (dtype, shape) in layout.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        entries[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def raw(tensor: Tensor) -> memoryview:
    """Return the bytes of a contiguous tensor on the CPU; they are not copied."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


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
