"""What holds of any message on the wire, whole or spoilt."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fedlora.adapter import AdapterState, AdapterUpdate, InspectedUpdate
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
from tests.strategies import make_spec, make_update, specs, states, updates

CAP = 2**20
HERE = Envelope(spec=make_spec(), run="demo-1", round=300)
VALID = encode_update(make_update(num_examples=1000), HERE)
ANY_FLOAT = st.floats(width=32)
ENVELOPES = st.builds(
    Envelope,
    spec=specs(),
    run=st.text(st.characters(codec="utf-8"), max_size=20),
    round=st.integers(0, 2**32 - 1),
)


def inspected(update: AdapterUpdate) -> InspectedUpdate:
    return InspectedUpdate(spec=update.spec, values=update.values, num_examples=update.num_examples)


def bits(adapter: AdapterState | AdapterUpdate) -> bytes:
    return adapter.values.numpy().tobytes()


@given(data=st.data(), envelope=ENVELOPES)
def test_any_adapter_survives_the_wire(data, envelope):
    """Whatever its shape and values, states and updates come back bit for bit."""
    state = data.draw(states(envelope.spec, floats=ANY_FLOAT))
    sent = encode_state(state, envelope)
    assert bits(decode_state(sent, envelope, max_bytes=CAP)) == bits(state)
    update = data.draw(updates(envelope.spec, floats=ANY_FLOAT))
    for message, decode in (
        (encode_trained(update, envelope), decode_trained),
        (encode_update(inspected(update), envelope), decode_update),
    ):
        again = decode(message, envelope, max_bytes=CAP)
        assert bits(again) == bits(update)
        assert again.num_examples == update.num_examples


@given(ours=ENVELOPES, theirs=ENVELOPES, data=st.data())
def test_a_message_is_read_in_its_own_envelope_only(ours, theirs, data):
    """Another run, round or adapter is refused, and never raises anything else."""
    update = inspected(data.draw(updates(theirs.spec)))
    message = encode_update(update, theirs)
    if ours == theirs:
        decode_update(message, ours, max_bytes=CAP)
    else:
        with pytest.raises(WireError):
            decode_update(message, ours, max_bytes=CAP)


MUTATIONS = st.lists(
    st.tuples(
        st.integers(0, len(VALID) - 1),
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


@given(MUTATIONS)
@example([(8, "set", b"\xff\xff\xff\xff")])
@example([(12, "repeat", b"xx")])
def test_a_spoilt_message_is_refused_or_is_a_message(mutations):
    """Either a WireError, or exactly those bytes are what the result is encoded as."""
    message = mutated(VALID, mutations)
    try:
        update = decode_update(message, HERE, max_bytes=CAP)
    except WireError:
        return
    assert encode_update(inspected(update), HERE) == message


@given(st.binary(max_size=200), st.booleans())
def test_rubbish_is_refused(rubbish, begins_well):
    """Nothing but a WireError is ever raised."""
    with pytest.raises(WireError):
        decode_update((b"FEDLORA\x01" if begins_well else b"") + rubbish, HERE, max_bytes=CAP)
