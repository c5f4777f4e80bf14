"""The wire format: round trips, and a refusal that names the field for everything else."""

import hashlib
import math
import struct
from collections.abc import Callable

import pytest
import torch

from fedlora.adapter import AdapterSpec, AdapterState, AdapterUpdate, TensorSpec
from fedlora.errors import WireError
from fedlora.wire.codec import (
    Envelope,
    decode_state,
    decode_trained,
    decode_update,
    encode_state,
    encode_trained,
    encode_update,
)
from fedlora.wire.v1 import update_pb2 as pb
from tests.strategies import MODULES, make_spec, make_state, make_update

SPEC = make_spec()
HERE = Envelope(spec=SPEC, run="demo-1", round=3)
CAP = 10_000
CODECS = {
    "state": (encode_state, decode_state),
    "trained": (encode_trained, decode_trained),
    "update": (encode_update, decode_update),
}


def envelope(**changes: object) -> Envelope:
    return Envelope(**{"spec": SPEC, "run": "demo-1", "round": 3} | changes)


def message(kind: str = "update", where: Envelope = HERE) -> bytes:
    value = make_state(where.spec) if kind == "state" else make_update(where.spec)
    return CODECS[kind][0](value, where)


def header_of(data: bytes) -> pb.AdapterHeader:
    (length,) = struct.unpack_from("<I", data, 8)
    return pb.AdapterHeader.FromString(data[12 : 12 + length])


def with_header(data: bytes, head: bytes) -> bytes:
    """Return the message with another header in front of the same values."""
    prefix = data[:8] + struct.pack("<I", len(head)) + head
    return prefix + bytes(-len(prefix) % 64) + data[-SPEC.size * 4 :]


def altered(change: Callable[[pb.AdapterHeader], object]) -> bytes:
    header = header_of(message())
    change(header)
    return with_header(message(), header.SerializeToString(deterministic=True))


def refuses(data: bytes, says: str, *, where: Envelope = HERE, max_bytes: int = CAP) -> None:
    with pytest.raises(WireError) as caught:
        decode_update(data, where, max_bytes=max_bytes)
    assert says in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("kind", CODECS)
def test_what_is_encoded_is_decoded_bit_for_bit(kind):
    """Values, NaN payloads and signed zeros included; inspection is another's task."""
    encode, decode = CODECS[kind]
    value = make_state() if kind == "state" else make_update(num_examples=41)
    value.values[:5] = torch.tensor([math.nan, math.inf, -math.inf, -0.0, 1e-45])
    value.values.view(torch.int32)[5] = 0x7FC0BEEF
    again = decode(encode(value, HERE), HERE, max_bytes=CAP)
    assert again.values.numpy().tobytes() == value.values.numpy().tobytes()
    assert again.spec is SPEC
    assert type(again) is (AdapterState if kind == "state" else AdapterUpdate)
    assert kind == "state" or again.num_examples == 41


def test_a_decoded_adapter_owns_its_values():
    """Changing them changes no message, and they can be changed without a warning."""
    data = message("state")
    before = hashlib.sha256(data).digest()
    decode_state(data, HERE, max_bytes=CAP).values.zero_()
    assert hashlib.sha256(data).digest() == before


def test_the_format_is_what_the_specification_of_the_wire_says():
    """Magic, length, header, zeros up to 64, then little-endian float32 without gaps."""
    data = message()
    assert data[:8] == b"FEDLORA\x01"
    start = len(data) - SPEC.size * 4
    assert start % 64 == 0
    assert struct.unpack_from(f"<{SPEC.size}f", data, start) == tuple(make_update().values.tolist())
    header = header_of(data)
    assert (header.run, header.round, header.num_examples) == ("demo-1", 3, 3)
    assert header.spec_digest.hex() == SPEC.digest
    assert header.base_digest.hex() == SPEC.base_digest
    assert [(t.module, t.factor, tuple(t.shape), t.offset) for t in header.tensors] == [
        ("model.layers.0.self_attn.q_proj", pb.FACTOR_A, (2, 3), 0),
        ("model.layers.0.self_attn.q_proj", pb.FACTOR_B, (5, 2), 24),
        ("model.layers.0.mlp.up_proj", pb.FACTOR_A, (2, 3), 64),
        ("model.layers.0.mlp.up_proj", pb.FACTOR_B, (4, 2), 88),
    ]


def test_equal_values_give_equal_bytes():
    """Digests of messages can be compared between machines."""
    assert message() == message()


@pytest.mark.parametrize("sent", CODECS)
@pytest.mark.parametrize("read", CODECS)
def test_kinds_cannot_be_swapped(sent, read):
    """What is for the gate is not for the aggregator, and what is for the sites is for no other."""
    decode = CODECS[read][1]
    if sent == read:
        decode(message(sent), HERE, max_bytes=CAP)
    else:
        expected = f"kind: KIND_{read.upper()} was expected, but it is KIND_{sent.upper()}"
        with pytest.raises(WireError, match=expected):
            decode(message(sent), HERE, max_bytes=CAP)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (envelope(run="demo-2"), "run: 'demo-1' was expected, but it is 'demo-2'"),
        (envelope(run=""), "run: 'demo-1' was expected, but it is ''"),
        (envelope(run="x" * 1000), "The header claims"),
        (envelope(round=4), "round: 3 was expected, but it is 4"),
        (envelope(round=0), "round: 3 was expected, but it is 0"),
        (envelope(round=2**32 - 1), "round: 3 was expected, but it is 4294967295"),
        (envelope(spec=make_spec(alpha=5.0)), f"spec_digest: {SPEC.digest[:12]} was expected"),
        (envelope(spec=make_spec(base_digest="cd" * 32)), "spec_digest: "),
        (envelope(spec=make_spec(rank=3)), "spec_digest: "),
        (envelope(spec=make_spec(modules=dict(reversed(MODULES.items())))), "spec_digest: "),
    ],
)
def test_a_message_about_something_else_is_refused_by_name(other, says):
    """Run, round, adapter and base must be those that the reader expects."""
    refuses(message(where=other), says)


@pytest.mark.parametrize("number", [-1, 2**32])
def test_a_round_that_the_header_cannot_hold_is_not_encoded(number):
    """Rounds are 32-bit; a larger one must not wrap around."""
    with pytest.raises(ValueError, match="out of range"):
        message(where=envelope(round=number))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda h: setattr(h, "kind", 0), "kind: KIND_UPDATE was expected, but it is KIND_UNSPEC"),
        (lambda h: setattr(h, "kind", 99), "kind: KIND_UPDATE was expected, but it is 99"),
        (lambda h: setattr(h, "codec", 0), "codec: CODEC_FP32 was expected"),
        (lambda h: setattr(h, "codec", 7), "codec: CODEC_FP32 was expected, but it is 7"),
        (lambda h: setattr(h, "spec_digest", b""), "but it is empty"),
        (lambda h: setattr(h, "base_digest", b"\x01"), "base_digest: abababababab was expected"),
        (lambda h: setattr(h, "num_examples", 0), "num_examples: at least 1"),
        (lambda h: h.tensors.pop(), "4 tensors were expected, but 3 came"),
        (lambda h: h.tensors.reverse(), "The tensor model.layers.0.self_attn.q_proj.lora_A (2, 3)"),
        (lambda h: setattr(h.tensors[0], "module", "m"), "but m.lora_A (2, 3)"),
        (lambda h: setattr(h.tensors[0], "factor", 2), "q_proj.lora_B (2, 3) of float32 at 0 came"),
        (lambda h: setattr(h.tensors[0], "factor", 9), "q_proj.lora_? (2, 3) of float32 at 0 came"),
        (lambda h: setattr(h.tensors[0], "dtype", 0), "(2, 3) of dtype 0 at 0 came"),
        (lambda h: setattr(h.tensors[3], "offset", 4), "(4, 2) of float32 at 4 came"),
        (lambda h: h.tensors[0].shape.__setitem__(0, 1), "lora_A (1, 3) of float32 at 0 came"),
        (lambda h: h.tensors[0].shape.append(1), "lora_A (2, 3, 1) of float32 at 0 came"),
        (lambda h: h.tensors[0].shape.pop(), "lora_A (2,) of float32 at 0 came"),
    ],
)
def test_a_field_that_differs_is_named(change, says):
    """A header is not only parsed, it must be the one that the reader would have written."""
    refuses(altered(change), says)


def test_num_examples_may_be_any_that_the_header_holds():
    """The one field that the reader does not know; its bounds are the gate's to check."""
    data = altered(lambda h: setattr(h, "num_examples", 2**64 - 1))
    assert decode_update(data, HERE, max_bytes=CAP).num_examples == 2**64 - 1


def test_a_state_carries_no_number_of_examples():
    """A field without meaning cannot carry something else."""
    header = header_of(message("state"))
    header.num_examples = 5
    data = with_header(message("state"), header.SerializeToString())
    with pytest.raises(WireError, match="num_examples: 0 was expected, but it is 5"):
        decode_state(data, HERE, max_bytes=CAP)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda head: head + b"\xf8\x07\x01",  # field 127, which nobody knows
        lambda head: head + head[:2],  # kind, a second time
        lambda head: head[2:] + head[:2],  # kind, not in its place
        lambda head: b"\x08\x83\x00" + head[2:],  # kind in two bytes where one would do
    ],
    ids=["unknown", "doubled", "moved", "padded"],
)
def test_a_header_that_says_the_same_in_other_bytes_is_refused(spoil):
    """There is one way to write a message, so nothing can hide in it."""
    head = spoil(header_of(message()).SerializeToString(deterministic=True))
    refuses(with_header(message(), head), "unknown, doubled, or not in its place")


def test_a_header_that_is_no_header_is_refused():
    """Bytes that protobuf cannot parse."""
    refuses(with_header(message(), b"\xff" * 20), "The header is not a fedlora.wire.v1")


@pytest.mark.parametrize("length", [0, 1, 5, 2**31, 2**32 - 1])
def test_a_false_header_length_is_refused(length):
    """It is compared with what the reader would have written before anything is read."""
    data = message()
    with pytest.raises(WireError):
        decode_update(data[:8] + struct.pack("<I", length) + data[12:], HERE, max_bytes=CAP)


def test_a_message_of_another_version_is_refused():
    """The last byte of the magic is the version."""
    refuses(b"FEDLORA\x02" + message()[8:], "another version of the wire format")


def test_bytes_between_header_and_values_are_zero():
    """Nothing can hide in the padding either."""
    data = bytearray(message())
    (length,) = struct.unpack_from("<I", data, 8)
    assert (12 + length) % 64, "this message has no padding; choose another run name"
    data[12 + length] = 1
    refuses(bytes(data), "must be zero")


def test_a_message_cut_off_anywhere_is_refused():
    """At every length below its own."""
    data = message()
    for length in range(len(data)):
        with pytest.raises(WireError):
            decode_update(data[:length], HERE, max_bytes=CAP)


@pytest.mark.parametrize("tail", [b"\x00", bytes(4), bytes(64)])
def test_a_message_with_more_behind_it_is_refused(tail):
    """The values' bytes are counted exactly."""
    refuses(message() + tail, f"{SPEC.size * 4} bytes of values were expected")


def test_a_message_above_the_cap_is_refused_unread():
    """The cap comes first: the message is rubbish, and the message's size is the reason."""
    size = len(message())
    decode_update(message(), HERE, max_bytes=size)
    refuses(message(), f"at most {size - 1} are read", max_bytes=size - 1)
    refuses(bytes(CAP + 1), "at most 10,000 are read")


def test_a_reader_of_many_tensors_refuses_a_short_message():
    """What the reader expects decides what is allocated, not what the message claims."""
    tensor = TensorSpec(module="m", factor="A", shape=(2**15, 2**15))
    fields = {name: getattr(SPEC, name) for name in SPEC.__dataclass_fields__}
    huge = AdapterSpec(**fields | {"tensors": (tensor,)})
    header = header_of(message())
    header.spec_digest = bytes.fromhex(huge.digest)
    del header.tensors[:]
    header.tensors.add(
        module="m", factor=pb.FACTOR_A, shape=tensor.shape, dtype=pb.DTYPE_FLOAT32, offset=0
    )
    data = with_header(message(), header.SerializeToString(deterministic=True))
    refuses(data, "4,294,967,296 bytes of values were expected", where=envelope(spec=huge))
