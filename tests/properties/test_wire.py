"""What holds of any message on the wire, whole or spoilt."""

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from fedlora.adapter import AdapterSpec, AdapterState, AdapterUpdate, InspectedUpdate
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
from tests.strategies import make_spec, make_update, specs, states, updates

CAP = 2**20
HERE = Envelope(spec=make_spec(), run="demo-1", round=300)
ANY_FLOAT = st.floats(width=32)
FORMATS = st.fixed_dictionaries({"codec": st.sampled_from([*ENCODINGS]), "compress": st.booleans()})


@st.composite
def parts(draw: st.DrawFn) -> AdapterSpec:
    """Specifications of whole adapters, of some of their factors, and of other ranks."""
    rank = draw(st.none() | st.integers(1, 6))
    return draw(specs()).part(draw(st.sampled_from(["AB", "A", "B"])), rank=rank)


ENVELOPES = st.builds(
    Envelope,
    spec=parts(),
    run=st.text(st.characters(codec="utf-8"), max_size=20),
    round=st.integers(0, 2**32 - 1),
)


def inspected(update: AdapterUpdate) -> InspectedUpdate:
    return InspectedUpdate(spec=update.spec, values=update.values, num_examples=update.num_examples)


def bits(adapter: AdapterState | AdapterUpdate) -> bytes:
    return adapter.values.numpy().tobytes()


@given(data=st.data(), envelope=ENVELOPES, compress=st.booleans())
def test_any_adapter_survives_the_wire(data, envelope, compress):
    """Whatever its shape and values, states and updates come back bit for bit."""
    state = data.draw(states(envelope.spec, floats=ANY_FLOAT))
    sent = encode_state(state, envelope, compress=compress)
    assert bits(decode_state(sent, envelope, compress=compress, max_bytes=CAP)) == bits(state)
    update = data.draw(updates(envelope.spec, floats=ANY_FLOAT))
    again = decode_trained(encode_trained(update, envelope), envelope, max_bytes=CAP)
    assert bits(again) == bits(update)
    form = {"codec": "fp32", "compress": compress}
    sent = encode_update(inspected(update), envelope, **form)
    again = decode_update(sent, envelope, **form, max_bytes=CAP)
    assert bits(again) == bits(update)
    assert again.num_examples == update.num_examples


@given(data=st.data(), envelope=ENVELOPES, form=FORMATS)
def test_any_update_arrives_as_it_is_rounded(data, envelope, form):
    """Finite, near, zeros as zeros, and, but for nf4, what arrived would be sent as it came."""
    update = inspected(data.draw(updates(envelope.spec)))
    sent = encode_update(update, envelope, **form)
    again = decode_update(sent, envelope, **form, max_bytes=CAP)
    assert bits(again) == rounded(update.values, update.spec, codec=form["codec"]).numpy().tobytes()
    assert again.is_finite()
    assert not again.values[update.values == 0].any()
    assert (again.values - update.values).double().abs().le(bounds(update, form["codec"])).all()
    if form["codec"] != "nf4":
        assert encode_update(inspected(again), envelope, **form) == sent


def bounds(update: AdapterUpdate, codec: str) -> torch.Tensor:
    """Return how far each value may be off, with some room for the rounding of float32."""
    if codec == "fp32":
        return torch.zeros(1)
    if codec == "bf16":
        return update.values.double().abs() * 2**-8 + 2**-134
    share = {"int8": 0.5 / 127, "nf4": 0.152}[codec]
    peaks = []
    for tensor, values in update.factors():
        peak = values.abs().amax(1 if tensor.factor == "A" else 0, keepdim=True).double()
        peaks.append(peak.expand(tensor.shape).flatten())
    return torch.cat(peaks) * share * (1 + 1e-4) + 2**-118


@given(
    data=st.data(),
    envelope=ENVELOPES,
    form=FORMATS,
    value=st.sampled_from([math.nan, math.inf, -math.inf]),
)
def test_what_is_not_finite_is_sent_as_it_is_or_not_at_all(data, envelope, form, value):
    """Only float32 has words for it."""
    update = inspected(data.draw(updates(envelope.spec)))
    update.values[data.draw(st.integers(0, envelope.spec.size - 1))] = value
    if form["codec"] == "fp32":
        encode_update(update, envelope, **form)
    else:
        with pytest.raises(AdapterError, match="holds values that are not finite"):
            encode_update(update, envelope, **form)


@given(ours=ENVELOPES, theirs=ENVELOPES, form=FORMATS, data=st.data())
def test_a_message_is_read_in_its_own_envelope_only(ours, theirs, form, data):
    """Another run, round, adapter or part is refused, and never raises anything else."""
    update = inspected(data.draw(updates(theirs.spec)))
    message = encode_update(update, theirs, **form)
    if ours == theirs:
        decode_update(message, ours, **form, max_bytes=CAP)
    else:
        with pytest.raises(WireError):
            decode_update(message, ours, **form, max_bytes=CAP)


LONGEST = len(encode_update(make_update(), HERE, codec="fp32", compress=True))
MUTATIONS = st.lists(
    st.tuples(
        st.integers(0, LONGEST - 1),
        st.sampled_from(["set", "insert", "delete", "repeat"]),
        st.binary(min_size=1, max_size=4),
    ),
    min_size=1,
    max_size=4,
)


def mutated(message: bytes, mutations: list[tuple[int, str, bytes]]) -> bytes:
    for place, kind, content in mutations:
        until = place + len(content)
        middle = {
            "set": content,
            "insert": content + message[place:until],
            "delete": b"",
            "repeat": message[place:until] * 2,
        }[kind]
        message = message[:place] + middle + message[until:]
    return message


@given(FORMATS, MUTATIONS)
@example({"codec": "fp32", "compress": False}, [(8, "set", b"\xff\xff\xff\xff")])
@example({"codec": "int8", "compress": True}, [(12, "repeat", b"xx")])
def test_a_spoilt_message_is_refused_or_is_a_message(form, mutations):
    """Either a WireError, or, but for nf4, what the result is encoded as before compression."""
    update = make_update(num_examples=1000)
    message = mutated(encode_update(update, HERE, **form), mutations)
    try:
        again = decode_update(message, HERE, **form, max_bytes=CAP)
    except WireError:
        return
    if form["codec"] != "fp32":
        assert again.is_finite()
    if form["compress"]:
        assert (
            bits(again)
            == rounded(update.values, update.spec, codec=form["codec"]).numpy().tobytes()
        )
    elif form["codec"] != "nf4":
        assert encode_update(inspected(again), HERE, **form) == message


@given(st.sampled_from([*ENCODINGS]), st.data())
def test_rubbish_behind_a_header_is_refused_or_is_a_message(codec, data):
    """Values that nobody encoded raise nothing but a WireError; what is read has one encoding."""
    form, size = {"codec": codec, "compress": False}, encoded_size(HERE.spec, codec)
    front = encode_update(make_update(), HERE, **form)[:-size]
    message = front + data.draw(st.binary(min_size=size, max_size=size))
    try:
        again = decode_update(message, HERE, **form, max_bytes=CAP)
    except WireError:
        return
    assert codec == "nf4" or encode_update(inspected(again), HERE, **form) == message


@given(FORMATS, st.binary(max_size=200), st.booleans())
def test_rubbish_is_refused(form, rubbish, begins_well):
    """Nothing but a WireError is ever raised."""
    message = (b"FEDLORA\x01" if begins_well else b"") + rubbish
    with pytest.raises(WireError):
        decode_update(message, HERE, **form, max_bytes=CAP)
