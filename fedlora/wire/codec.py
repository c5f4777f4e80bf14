"""Adapters as bytes: a header that is checked first, then the values.

Writing and reading take the memory of the message, of the float32 values, and of one tensor.
"""

from collections.abc import Iterator
from io import BytesIO

import numpy as np
import torch
from torch import Tensor

from fedlora.adapter import AdapterSpec, AdapterState, AdapterUpdate, InspectedUpdate
from fedlora.errors import WireError
from fedlora.sections import Codec
from fedlora.wire.compression import decompress, split_frames, write_frames
from fedlora.wire.encodings import ENCODINGS, Block
from fedlora.wire.header import Envelope, Format, read_front, write_front
from fedlora.wire.v1 import update_pb2 as pb

__all__ = [
    "Envelope",
    "decode_state",
    "decode_trained",
    "decode_update",
    "encode_state",
    "encode_trained",
    "encode_update",
]

_TRAINED = Format(kind=pb.KIND_TRAINED, codec="fp32", compress=False)


def encode_state(state: AdapterState, envelope: Envelope, *, compress: bool) -> bytes:
    """Return the global adapter, in float32, as bytes for the sites.

    Raises:
        AdapterError: the state is not of the envelope's specification.
    """
    form = Format(kind=pb.KIND_STATE, codec="fp32", compress=compress)
    return _encode(state, envelope, form, num_examples=0)


def encode_trained(update: AdapterUpdate, envelope: Envelope) -> bytes:
    """Return an increment as bytes for the site's own gate; no aggregator takes them.

    Raises:
        AdapterError: the update is not of the envelope's specification.
    """
    return _encode(update, envelope, _TRAINED, num_examples=update.num_examples)


def encode_update(
    update: InspectedUpdate, envelope: Envelope, *, codec: Codec, compress: bool
) -> bytes:
    """Return an increment that the gate let pass as bytes for the aggregator.

    What is read from them is ``encodings.rounded(update.values, update.spec, codec=codec)``.

    Raises:
        AdapterError: the update is not of the envelope's specification, or a value is not finite
            and the codec is not ``fp32``.
    """
    form = Format(kind=pb.KIND_UPDATE, codec=codec, compress=compress)
    return _encode(update, envelope, form, num_examples=update.num_examples)


def decode_state(
    data: bytes, envelope: Envelope, *, compress: bool, max_bytes: int
) -> AdapterState:
    """Read what ``encode_state`` wrote.

    Guarantees:
        Nothing is allocated for a message whose header or sizes are not exactly what ``envelope``
        says. Encoding the result again gives the same bytes, before compression.

    Raises:
        WireError: the message is not what ``envelope`` says; the reason names the field.
    """
    form = Format(kind=pb.KIND_STATE, codec="fp32", compress=compress)
    _, values = _decode(data, envelope, form, max_bytes=max_bytes)
    return AdapterState(spec=envelope.spec, values=values)


def decode_trained(data: bytes, envelope: Envelope, *, max_bytes: int) -> AdapterUpdate:
    """Read what ``encode_trained`` wrote; guarantees and errors as ``decode_state``."""
    num_examples, values = _decode(data, envelope, _TRAINED, max_bytes=max_bytes)
    return AdapterUpdate(spec=envelope.spec, values=values, num_examples=num_examples)


def decode_update(
    data: bytes,
    envelope: Envelope,
    *,
    codec: Codec,
    compress: bool,
    max_bytes: int,
    out: Tensor | None = None,
) -> AdapterUpdate:
    """Read what ``encode_update`` wrote; errors as ``decode_state``.

    With ``out``, at least as many float32 as the update has, its values lie there: fresh memory
    costs more than reading the bytes.

    The result is not an ``InspectedUpdate``: the aggregator trusts no site's gate.

    Guarantees:
        As ``decode_state``, but with ``nf4`` other bytes may come when the result is encoded again.
        With another codec than ``fp32`` all values are finite.
    """
    form = Format(kind=pb.KIND_UPDATE, codec=codec, compress=compress)
    num_examples, values = _decode(data, envelope, form, max_bytes=max_bytes, out=out)
    return AdapterUpdate(spec=envelope.spec, values=values, num_examples=num_examples)


def _encode(
    adapter: AdapterState | AdapterUpdate, envelope: Envelope, form: Format, *, num_examples: int
) -> bytes:
    envelope.spec.require_same(adapter.spec)
    encoding = ENCODINGS[form.codec]
    blocks = (encoding.encode(tensor, values.numpy()) for tensor, values in adapter.factors())
    stream = BytesIO()  # its getvalue() does not copy
    stream.write(write_front(envelope, form, num_examples=num_examples))
    if form.compress:
        count = len(envelope.spec.tensors)
        write_frames(stream, blocks, count=count, itemsize=encoding.itemsize)
    else:
        for block in blocks:
            stream.write(block.data)
    return stream.getvalue()


def _decode(
    data: bytes, envelope: Envelope, form: Format, *, max_bytes: int, out: Tensor | None = None
) -> tuple[int, Tensor]:
    """Return the number of examples and the values of a message."""
    if len(data) > max_bytes:
        raise WireError(f"The message has {len(data):,} bytes; at most {max_bytes:,} are read.")
    num_examples, start = read_front(data, envelope, form)
    spec, encoding = envelope.spec, ENCODINGS[form.codec]
    blocks = _blocks(memoryview(data)[start:], spec, form)
    values = torch.empty(spec.size) if out is None else out[: spec.size]
    for (tensor, first), block in zip(spec.offsets(), blocks, strict=True):
        into = values[first : first + tensor.size].view(tensor.shape)
        into.numpy()[...] = encoding.decode(tensor, block)
    return num_examples, values


def _blocks(data: memoryview, spec: AdapterSpec, form: Format) -> Iterator[Block]:
    """Check the sizes of all blocks at once; then each is read when its turn comes."""
    encoding = ENCODINGS[form.codec]
    sizes = [encoding.size(tensor) for tensor in spec.tensors]
    names = [tensor.name for tensor in spec.tensors]
    if form.compress:
        frames = split_frames(data, names, sizes)
        return (
            decompress(frame, name, itemsize=encoding.itemsize)
            for frame, name in zip(frames, names, strict=True)
        )
    size = sum(sizes)
    if len(data) != size:
        raise WireError(f"{size:,} bytes of values were expected, but {len(data):,} came.")
    ends = np.cumsum(sizes)[:-1]
    return iter(np.split(np.frombuffer(data, np.uint8), ends))
