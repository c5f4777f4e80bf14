"""Safetensors files as the pieces that are written one after another.

safetensors' own writer copies all tensors first, which the aggregator's memory has no room for, and
on a full disk it raises an error of its own instead of ``OSError``.
"""

import json
import struct
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

_DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64"}


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
