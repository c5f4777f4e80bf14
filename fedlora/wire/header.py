"""What stands in front of the values. A message must carry the very header its reader would write.

The layout is in ``proto/fedlora/wire/v1/update.proto``.
"""

import struct
from dataclasses import dataclass
from itertools import accumulate

from google.protobuf.message import DecodeError

from fedlora.adapter import AdapterSpec
from fedlora.errors import WireError
from fedlora.sections import Codec
from fedlora.tensors import KINDS, Factor
from fedlora.wire.encodings import ENCODINGS
from fedlora.wire.v1 import update_pb2 as pb

_MAGIC = b"FEDLORA\x01"
_PREFIX = struct.Struct("<8sI")
_ALIGNMENT = 64
_LONGEST_NUMBER = 11
"""Bytes that ``num_examples``, the one field that the reader does not know, takes at most."""
_FACTORS: dict[Factor, pb.Factor] = {"A": pb.FACTOR_A, "B": pb.FACTOR_B, "head": pb.FACTOR_HEAD}
_CODECS: dict[Codec, tuple[pb.Codec, pb.Dtype]] = {
    "fp32": (pb.CODEC_FP32, pb.DTYPE_FLOAT32),
    "bf16": (pb.CODEC_BF16, pb.DTYPE_BFLOAT16),
    "int8": (pb.CODEC_INT8, pb.DTYPE_INT8),
    "nf4": (pb.CODEC_NF4, pb.DTYPE_NF4),
}


@dataclass(frozen=True, kw_only=True)
class Envelope:
    """What a message is about. Sender and reader must agree on it."""

    spec: AdapterSpec
    """Of the adapter, or of the part of it that travels."""
    run: str
    """Our own run: a restarted aggregator is a new Flower run of the same fedlora run."""
    round: int


@dataclass(frozen=True, kw_only=True)
class Format:
    """How a message is written. Sender and reader must agree on it too."""

    kind: pb.Kind
    codec: Codec
    compress: bool


def write_front(envelope: Envelope, form: Format, *, num_examples: int) -> bytes:
    """Return all that stands in front of the values."""
    head = _header(envelope, form, num_examples=num_examples).SerializeToString(deterministic=True)
    prefix = _PREFIX.pack(_MAGIC, len(head)) + head
    return prefix + bytes(-len(prefix) % _ALIGNMENT)


def read_front(data: bytes, envelope: Envelope, form: Format) -> tuple[int, int]:
    """Return the number of examples and where the values begin.

    Raises:
        WireError: the header is not the one that was expected; the reason names the field.
    """
    expected = _header(envelope, form, num_examples=0)
    head, start = _split(data, longest=expected.ByteSize() + _LONGEST_NUMBER)
    try:
        header = pb.AdapterHeader.FromString(head)
    except DecodeError:
        raise WireError("The header is not a fedlora.wire.v1.AdapterHeader.") from None
    if form.kind != pb.KIND_STATE:
        expected.num_examples = header.num_examples
    # Equal bytes also exclude fields that are unknown, doubled, or in another order.
    if head != expected.SerializeToString(deterministic=True):
        raise WireError(_difference(header, expected))
    if form.kind != pb.KIND_STATE and header.num_examples < 1:
        raise WireError("num_examples: at least 1 was expected, but it is 0.")
    return header.num_examples, start


def _header(envelope: Envelope, form: Format, *, num_examples: int) -> pb.AdapterHeader:
    spec, size = envelope.spec, ENCODINGS[form.codec].size
    codec, dtype = _CODECS[form.codec]
    offsets = accumulate(map(size, spec.tensors), initial=0)
    return pb.AdapterHeader(
        kind=form.kind,
        codec=codec,
        compression=pb.COMPRESSION_ZSTD if form.compress else pb.COMPRESSION_NONE,
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
                dtype=dtype,
                offset=offset,
            )
            for tensor, offset in zip(spec.tensors, offsets, strict=False)
        ],
    )


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
    for field in (
        "kind", "codec", "compression", "run", "round", "spec_digest", "base_digest", "num_examples"
    ):  # fmt: skip
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
    names = {"kind": pb.Kind, "codec": pb.Codec, "compression": pb.Compression}
    if field in names and value in names[field].values():
        return str(names[field].Name(value))
    return f"{value!r:.80}"


def _brief(tensor: pb.TensorHeader) -> str:
    suffixes = {number: KINDS[name].suffix for name, number in _FACTORS.items()}
    module = tensor.module[:80] + suffixes.get(tensor.factor, ".lora_?")
    known = tensor.dtype in pb.Dtype.values() and tensor.dtype != pb.DTYPE_UNSPECIFIED
    dtype = pb.Dtype.Name(tensor.dtype) if known else f"dtype {tensor.dtype}"
    name = dtype.removeprefix("DTYPE_").lower()
    return f"{module} {tuple(tensor.shape[:4])} of {name} at {tensor.offset}"
