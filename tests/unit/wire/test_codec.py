"""The wire format: round trips, and a refusal that names the field for everything else."""

import hashlib
import math
import struct
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from itertools import product

import pytest
import torch

from fedlora.adapter import AdapterSpec, AdapterState, AdapterUpdate, TensorSpec
from fedlora.errors import AdapterError, WireError
from fedlora.wire.codec import (
    Envelope,
    decode_state,
    decode_trained,
    decode_update,
    encode_state,
    encode_trained,
    encode_update,
)
from fedlora.wire.encodings import ENCODINGS, encoded_size, rounded
from fedlora.wire.header import Format, write_front
from fedlora.wire.v1 import update_pb2 as pb
from tests.strategies import MODULES, make_spec, make_state, make_update

SPEC = make_spec()
HERE = Envelope(spec=SPEC, run="demo-1", round=3)
CAP = 10_000
PLAIN = {"codec": "fp32", "compress": False}
FORMATS = [{"codec": c, "compress": z} for c, z in product(ENCODINGS, (False, True))]
KINDS = {
    "state": (partial(encode_state, compress=False), partial(decode_state, compress=False)),
    "trained": (encode_trained, decode_trained),
    "update": (partial(encode_update, **PLAIN), partial(decode_update, **PLAIN)),
}


def envelope(**changes: object) -> Envelope:
    return Envelope(**{"spec": SPEC, "run": "demo-1", "round": 3} | changes)


def message(kind: str = "update", where: Envelope = HERE) -> bytes:
    value = make_state(where.spec) if kind == "state" else make_update(where.spec)
    return KINDS[kind][0](value, where)


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


def refuses(
    data: bytes,
    says: str,
    *,
    where: Envelope = HERE,
    max_bytes: int = CAP,
    form: dict[str, object] = PLAIN,
) -> None:
    with pytest.raises(WireError) as caught:
        decode_update(data, where, **form, max_bytes=max_bytes)
    assert says in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_encoded_is_decoded_bit_for_bit(kind):
    """Values, NaN payloads and signed zeros included; inspection is another's task."""
    encode, decode = KINDS[kind]
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
    decode_state(data, HERE, compress=False, max_bytes=CAP).values.zero_()
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


@pytest.mark.parametrize("sent", KINDS)
@pytest.mark.parametrize("read", KINDS)
def test_kinds_cannot_be_swapped(sent, read):
    """What is for the gate is not for the aggregator, and what is for the sites is for no other."""
    decode = KINDS[read][1]
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
        (lambda h: setattr(h, "compression", 0), "compression: COMPRESSION_NONE was expected"),
        (lambda h: setattr(h, "compression", 9), "COMPRESSION_NONE was expected, but it is 9"),
        (lambda h: setattr(h, "spec_digest", b""), "but it is empty"),
        (lambda h: setattr(h, "base_digest", b"\x01"), "base_digest: abababababab was expected"),
        (lambda h: setattr(h, "num_examples", 0), "num_examples: at least 1"),
        (lambda h: h.tensors.pop(), "4 tensors were expected, but 3 came"),
        (lambda h: h.tensors.reverse(), "The tensor model.layers.0.self_attn.q_proj.lora_A (2, 3)"),
        (lambda h: setattr(h.tensors[0], "module", "m"), "but m.lora_A (2, 3)"),
        (lambda h: setattr(h.tensors[0], "factor", 2), "q_proj.lora_B (2, 3) of float32 at 0 came"),
        (lambda h: setattr(h.tensors[0], "factor", 9), "q_proj.lora_? (2, 3) of float32 at 0 came"),
        (lambda h: setattr(h.tensors[0], "dtype", 0), "(2, 3) of dtype 0 at 0 came"),
        (lambda h: setattr(h.tensors[0], "dtype", 3), "(2, 3) of int8 at 0 came"),
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
    assert decode_update(data, HERE, **PLAIN, max_bytes=CAP).num_examples == 2**64 - 1


def test_a_state_carries_no_number_of_examples():
    """A field without meaning cannot carry something else."""
    header = header_of(message("state"))
    header.num_examples = 5
    data = with_header(message("state"), header.SerializeToString())
    with pytest.raises(WireError, match="num_examples: 0 was expected, but it is 5"):
        decode_state(data, HERE, compress=False, max_bytes=CAP)


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
        decode_update(
            data[:8] + struct.pack("<I", length) + data[12:], HERE, **PLAIN, max_bytes=CAP
        )


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
            decode_update(data[:length], HERE, **PLAIN, max_bytes=CAP)


@pytest.mark.parametrize("tail", [b"\x00", bytes(4), bytes(64)])
def test_a_message_with_more_behind_it_is_refused(tail):
    """The values' bytes are counted exactly."""
    refuses(message() + tail, f"{SPEC.size * 4} bytes of values were expected")


def test_a_message_above_the_cap_is_refused_unread():
    """The cap comes first: the message is rubbish, and the message's size is the reason."""
    size = len(message())
    decode_update(message(), HERE, **PLAIN, max_bytes=size)
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


def name_of(form: dict[str, object]) -> str:
    return f"{form['codec']}{'-zstd' if form['compress'] else ''}"


EVERY_FORMAT = pytest.mark.parametrize("form", FORMATS, ids=name_of)


@EVERY_FORMAT
@pytest.mark.parametrize("part", [("AB", None), ("B", None), ("A", 1), ("AB", 1), ("BA", 5)])
def test_a_part_is_read_as_it_is_rounded(form, part):
    """In every format, for any factors and ranks: the values that error feedback reckons with."""
    factors, rank = part
    where = envelope(spec=make_spec(rank=3).part(factors, rank=rank))
    update = make_update(where.spec, num_examples=7)
    data = encode_update(update, where, **form)
    again = decode_update(data, where, **form, max_bytes=CAP)
    assert torch.equal(again.values, rounded(update.values, where.spec, codec=form["codec"]))
    assert again.spec is where.spec
    assert again.num_examples == 7


@EVERY_FORMAT
def test_parts_cannot_be_swapped(form):
    """What was sent of a part of the adapter is not read as another part, nor as the whole."""
    parts = [SPEC, SPEC.part("A"), SPEC.part("B"), SPEC.part(rank=1), SPEC.part(rank=3)]
    for sent, read in product(parts, parts):
        data = encode_update(make_update(sent), envelope(spec=sent), **form)
        if sent is read:
            decode_update(data, envelope(spec=read), **form, max_bytes=CAP)
        else:
            with pytest.raises(WireError):
                decode_update(data, envelope(spec=read), **form, max_bytes=CAP)


@EVERY_FORMAT
@pytest.mark.parametrize("read", FORMATS, ids=name_of)
def test_another_codec_or_compression_is_refused_by_name(form, read):
    """The recipe says which; a sender does not choose."""
    data = encode_update(make_update(), HERE, **form)
    came, wanted = (f"CODEC_{f['codec'].upper()}" for f in (form, read))
    if form == read:
        decode_update(data, HERE, **read, max_bytes=CAP)
    elif came != wanted:
        refuses(data, f"codec: {wanted} was expected, but it is {came}", form=read)
    else:
        wanted, came = ("ZSTD", "NONE") if read["compress"] else ("NONE", "ZSTD")
        says = f"compression: COMPRESSION_{wanted} was expected, but it is COMPRESSION_{came}"
        refuses(data, says, form=read)


@pytest.mark.parametrize("compress", [False, True])
def test_a_state_travels_as_it_is_compressed_or_not(compress):
    """The global adapter loses nothing on its way down."""
    state = make_state()
    data = encode_state(state, HERE, compress=compress)
    again = decode_state(data, HERE, compress=compress, max_bytes=CAP)
    assert torch.equal(again.values, state.values)
    with pytest.raises(WireError, match="compression: "):
        decode_state(data, HERE, compress=not compress, max_bytes=CAP)


@pytest.mark.parametrize("codec", ENCODINGS)
def test_the_header_says_where_each_tensor_is(codec):
    """Offsets and dtypes alone lead to every tensor's bytes, without another tensor's."""
    update = make_update()
    data = encode_update(update, HERE, codec=codec, compress=False)
    start = len(data) - encoded_size(SPEC, codec)
    for (tensor, values), header in zip(update.factors(), header_of(data).tensors, strict=True):
        block = ENCODINGS[codec].encode(tensor, values.numpy()).tobytes()
        first = start + header.offset
        assert data[first : first + len(block)] == block
        assert pb.Dtype.Name(header.dtype).removeprefix("DTYPE_").lower() == {
            "fp32": "float32",
            "bf16": "bfloat16",
        }.get(codec, codec)


@EVERY_FORMAT
def test_in_every_format_a_message_is_neither_shorter_nor_longer(form):
    """At every length below its own, and with more behind it."""
    data = encode_update(make_update(), HERE, **form)
    for spoilt in [*(data[:length] for length in range(len(data))), data + b"\x00", data * 2]:
        with pytest.raises(WireError):
            decode_update(spoilt, HERE, **form, max_bytes=CAP)


def test_an_adapter_of_another_specification_is_not_encoded():
    """A part sent in the envelope of the whole would say what it is not."""
    part = SPEC.part("B")
    with pytest.raises(AdapterError, match="different specifications"):
        encode_update(make_update(part), HERE, **PLAIN)
    with pytest.raises(AdapterError, match="different specifications"):
        encode_trained(make_update(part), HERE)
    with pytest.raises(AdapterError, match="different specifications"):
        encode_state(make_state(part), HERE, compress=False)


@pytest.mark.parametrize("codec", ["int8", "nf4"])
def test_a_broken_scale_is_refused_with_its_tensor(codec):
    """The last tensor's, behind others that are whole."""
    data = bytearray(encode_update(make_update(), HERE, codec=codec, compress=False))
    size = ENCODINGS[codec].size(SPEC.tensors[-1])
    struct.pack_into("<f", data, len(data) - size + 4, math.nan)
    form = {"codec": codec, "compress": False}
    refuses(bytes(data), "model.layers.0.mlp.up_proj.lora_B: the scale of row 1 is nan", form=form)


@pytest.mark.parametrize(("codec", "ratio"), [("fp32", 1.001), ("int8", 0.26), ("nf4", 0.14)])
def test_a_large_adapter_takes_few_bytes(codec, ratio):
    """All modules of a 7B Llama at rank 16, header included, against float32 values alone."""
    shapes = {"q": (4096, 4096), "k": (4096, 4096), "v": (4096, 4096), "o": (4096, 4096)}
    shapes |= {"gate": (4096, 11008), "up": (4096, 11008), "down": (11008, 4096)}
    modules = {f"model.layers.{i}.x.{n}_proj": s for i in range(32) for n, s in shapes.items()}
    spec = make_spec(rank=16, modules=modules)
    form = Format(kind=pb.KIND_UPDATE, codec=codec, compress=False)
    front = write_front(envelope(spec=spec), form, num_examples=1)
    assert (len(front) + encoded_size(spec, codec)) / (4 * spec.size) <= ratio


MEMORY = """
import resource, sys
import torch
from fedlora.adapter import InspectedUpdate
from fedlora.wire.codec import Envelope, decode_update, encode_update
from tests.strategies import make_spec

def megabytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

spec = make_spec(rank=16, modules={f"m{i}": (4096, 4096) for i in range(128)})
values = torch.randn(spec.size)
update, where = InspectedUpdate(spec=spec, values=values, num_examples=1), Envelope(
    spec=spec, run="r", round=1)
form = {"codec": sys.argv[1], "compress": sys.argv[2] == "True"}
small = make_spec()
first = Envelope(spec=small, run="r", round=1)
warm = InspectedUpdate(spec=small, values=torch.ones(small.size), num_examples=1)
decode_update(encode_update(warm, first, **form), first, **form, max_bytes=2**31)
before = megabytes()
data = encode_update(update, where, **form)
encoded = megabytes()
decode_update(data, where, **form, max_bytes=2**31)
print(4 * spec.size / 2**20, len(data) / 2**20, encoded - before, megabytes() - encoded)
"""


@pytest.mark.parametrize(("codec", "compress"), [("fp32", False), ("int8", True), ("nf4", False)])
def test_no_second_copy_is_made(codec, compress):
    """Encoding takes the message's memory, decoding that of the values, and both a tensor's."""
    arguments = [sys.executable, "-c", MEMORY, codec, str(compress)]
    result = subprocess.run(arguments, capture_output=True, text=True, check=True)
    values, message_size, encoding, decoding = map(float, result.stdout.split())
    assert values == 64
    assert encoding <= message_size + 8
    assert decoding <= values + 8
