"""Adapters as bytes. A message must carry the very header that its reader would have written.

The layout is in ``proto/fedlora/wire/v1/update.proto``. The values are the adapter's flat float32
vector as it lies in memory, so encoding and decoding are one copy each.
"""

import struct
from dataclasses import dataclass

import numpy as np
import torch
from google.protobuf.message import DecodeError
from torch import Tensor

from fedlora.adapter import AdapterSpec, AdapterState, AdapterUpdate, InspectedUpdate
from fedlora.errors import WireError
from fedlora.wire.v1 import update_pb2 as pb

_MAGIC = b"FEDLORA\x01"
_PREFIX = struct.Struct("<8sI")
_ALIGNMENT = 64
_VALUE = np.dtype("<f4")
_LONGEST_NUMBER = 11
"""Bytes that ``num_examples``, the one field that the reader does not know, takes at most."""
_FACTORS = {"A": pb.FACTOR_A, "B": pb.FACTOR_B}


@dataclass(frozen=True, kw_only=True)
class Envelope:
    """What a message is about. Sender and reader must agree on it."""

    spec: AdapterSpec
    run: str
    """Our own run: a restarted aggregator is a new Flower run of the same fedlora run."""
    round: int


def encode_state(state: AdapterState, envelope: Envelope) -> bytes:
    """Return the global adapter as bytes for the sites."""
    return _encode(state.values, _header(pb.KIND_STATE, envelope, num_examples=0))


def encode_trained(update: AdapterUpdate, envelope: Envelope) -> bytes:
    """Return an increment as bytes for the site's own gate; no aggregator takes them."""
    header = _header(pb.KIND_TRAINED, envelope, num_examples=update.num_examples)
    return _encode(update.values, header)


def encode_update(update: InspectedUpdate, envelope: Envelope) -> bytes:
    """Return an increment that the gate let pass as bytes for the aggregator."""
    header = _header(pb.KIND_UPDATE, envelope, num_examples=update.num_examples)
    return _encode(update.values, header)


def decode_state(data: bytes, envelope: Envelope, *, max_bytes: int) -> AdapterState:
    """Read what ``encode_state`` wrote.

    Guarantees:
        Nothing is allocated for a message that is not exactly what ``envelope`` says; encoding the
        result again gives the same bytes.

    Raises:
        WireError: the message is not what ``envelope`` says; the reason names the field.
    """
    _, values = _decode(data, pb.KIND_STATE, envelope, max_bytes=max_bytes)
    return AdapterState(spec=envelope.spec, values=values)


def decode_trained(data: bytes, envelope: Envelope, *, max_bytes: int) -> AdapterUpdate:
    """Read what ``encode_trained`` wrote; guarantees and errors as ``decode_state``."""
    num_examples, values = _decode(data, pb.KIND_TRAINED, envelope, max_bytes=max_bytes)
    return AdapterUpdate(spec=envelope.spec, values=values, num_examples=num_examples)


def decode_update(data: bytes, envelope: Envelope, *, max_bytes: int) -> AdapterUpdate:
    """Read what ``encode_update`` wrote; guarantees and errors as ``decode_state``.

    The result is not an ``InspectedUpdate``: the aggregator trusts no site's gate.
    """
    num_examples, values = _decode(data, pb.KIND_UPDATE, envelope, max_bytes=max_bytes)
    return AdapterUpdate(spec=envelope.spec, values=values, num_examples=num_examples)


def _header(kind: pb.Kind, envelope: Envelope, *, num_examples: int) -> pb.AdapterHeader:
    spec = envelope.spec
    return pb.AdapterHeader(
        kind=kind,
        codec=pb.CODEC_FP32,
        run=envelope.run,
        round=envelope.round,
        spec_digest=bytes.fromhex(spec.digest),
        base_digest=bytes.fromhex(spec.base_digest),
        num_examples=num_examples,
        tensors=[
            pb.TensorHeader(
                module=tensor.module,
                factor=_FACTORS[tensor.factor],
                shape=tensor.shape,
                dtype=pb.DTYPE_FLOAT32,
                offset=start * _VALUE.itemsize,
            )
            for tensor, start in spec.offsets()
        ],
    )


def _encode(values: Tensor, header: pb.AdapterHeader) -> bytes:
    head = header.SerializeToString(deterministic=True)
    prefix = _PREFIX.pack(_MAGIC, len(head)) + head
    padding = bytes(-len(prefix) % _ALIGNMENT)
    return b"".join((prefix, padding, values.numpy().astype(_VALUE, copy=False).data))


def _decode(
    data: bytes, kind: pb.Kind, envelope: Envelope, *, max_bytes: int
) -> tuple[int, Tensor]:
    """Return the number of examples and the values of a message."""
    if len(data) > max_bytes:
        raise WireError(f"The message has {len(data):,} bytes; at most {max_bytes:,} are read.")
    expected = _header(kind, envelope, num_examples=0)
    head, start = _split(data, longest=expected.ByteSize() + _LONGEST_NUMBER)
    try:
        header = pb.AdapterHeader.FromString(head)
    except DecodeError:
        raise WireError("The header is not a fedlora.wire.v1.AdapterHeader.") from None
    if kind != pb.KIND_STATE:
        expected.num_examples = header.num_examples
    # Equal bytes also exclude fields that are unknown, doubled, or in another order.
    if head != expected.SerializeToString(deterministic=True):
        raise WireError(_difference(header, expected))
    if kind != pb.KIND_STATE and header.num_examples < 1:
        raise WireError("num_examples: at least 1 was expected, but it is 0.")
    size = envelope.spec.size * _VALUE.itemsize
    if len(data) - start != size:
        raise WireError(f"{size:,} bytes of values were expected, but {len(data) - start:,} came.")
    values = np.frombuffer(data, _VALUE, offset=start)
    return header.num_examples, torch.from_numpy(values.astype(np.float32))


def _split(data: bytes, *, longest: int) -> tuple[bytes, int]:
    """Return the header's bytes and where the values begin."""
    if len(data) < _PREFIX.size:
        raise WireError(f"The message has only {len(data)} bytes; it was cut off.")
    magic, length = _PREFIX.unpack_from(data)
    if magic != _MAGIC:
        raise WireError(
            f"The message begins with {magic!r} instead of {_MAGIC!r}: it is no adapter, or of "
            "another version of the wire format."
        )
    if length > longest:
        raise WireError(f"The header claims {length:,} bytes; at most {longest:,} were expected.")
    end = _PREFIX.size + length
    start = end + -end % _ALIGNMENT
    if len(data) < start:
        raise WireError(f"The message has only {len(data)} bytes; it was cut off in its header.")
    if any(data[end:start]):
        raise WireError("The bytes between header and values must be zero.")
    return data[_PREFIX.size : end], start


def _difference(header: pb.AdapterHeader, expected: pb.AdapterHeader) -> str:
    """Return the first field in which two headers differ, and how."""
    for field in ("kind", "codec", "run", "round", "spec_digest", "base_digest", "num_examples"):
        came, wanted = getattr(header, field), getattr(expected, field)
        if came != wanted:
            shown = f"{_shown(field, wanted)} was expected, but it is {_shown(field, came)}"
            return f"{field}: {shown}."
    if len(header.tensors) != len(expected.tensors):
        return f"{len(expected.tensors)} tensors were expected, but {len(header.tensors)} came."
    for tensor, wanted in zip(header.tensors, expected.tensors, strict=True):
        if tensor != wanted:
            return f"The tensor {_brief(wanted)} was expected, but {_brief(tensor)} came."
    return "The header holds a field that is unknown, doubled, or not in its place."


def _shown(field: str, value: object) -> str:
    if isinstance(value, bytes):
        return value.hex()[:12] or "empty"
    names = {"kind": pb.Kind, "codec": pb.Codec}
    if field in names and value in names[field].values():
        return str(names[field].Name(value))
    return f"{value!r:.80}"


def _brief(tensor: pb.TensorHeader) -> str:
    factor = {number: name for name, number in _FACTORS.items()}.get(tensor.factor, "?")
    dtype = "float32" if tensor.dtype == pb.DTYPE_FLOAT32 else f"dtype {tensor.dtype}"
    shape = tuple(tensor.shape[:4])
    return f"{tensor.module[:80]}.lora_{factor} {shape} of {dtype} at {tensor.offset}"
