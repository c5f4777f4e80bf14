"""Frames between gate and trainer: read whole, within bounds and time, in one spelling."""

import json
import socket
import struct
import threading
import time

import pytest

from fedlora.errors import WireError
from fedlora.privacy.charge import Charge
from fedlora.runtime.client.frames import Answer, Ask, Channel, ChargeRequest, FromGate, FromTrainer

CHARGE = Charge.of_steps(3, sensitivity=1e-5, noise_multiplier=1.25, sampling_rate=1e-7)
SAID = [
    Answer(metrics={"eval_loss_sum": 3.0, "eval_tokens": 7}),
    ChargeRequest(purpose="train", number=3, charge=CHARGE, data="0f" * 32),
]
ASK = Ask(purpose="train", site="north", run="r", round=1, recipe="name: ü\n", seconds=60)
BOUNDS = {"longest": 2**16, "longest_body": 100}


@pytest.fixture
def ends():
    """Both ends of a connection."""
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def sent(ends, header: bytes, body: bytes = b"") -> Channel:
    one, other = ends
    one.sendall(struct.pack("<IQ", len(header), len(body)) + header + body)
    return Channel(other)


@pytest.mark.parametrize("said", SAID)
def test_what_is_said_arrives_as_it_was(ends, said):
    """Header and bytes, with the numbers that they had."""
    one, other = ends
    Channel(one).send(said, b"\0bytes")
    assert Channel(other).receive(FromTrainer, **BOUNDS) == (said, b"\0bytes")


def test_a_gate_is_understood_by_its_trainer(ends):
    """Also letters beyond ASCII in a recipe."""
    one, other = ends
    Channel(one).send(ASK)
    assert Channel(other).receive(FromGate, **BOUNDS) == (ASK, b"")


@pytest.mark.parametrize(
    "header",
    [
        b'{"kind":"answer", "metrics":{}}',
        b'{"metrics":{},"kind":"answer"}',
        b'{"kind":"answer","metrics":{},"more":1}',
        b'{"kind":"answer","metrics":{"a":true}}',
        b'{"kind":"answer","metrics":{"a":"1"}}',
        b'{"kind":"answer","metrics":{"a":NaN}}',
        b'{"kind":"answer","metrics":{"a":9007199254740992}}',
        b'{"kind":"answer","metrics":{"a":1,"a":2}}',
        b'{"kind":"answer"}',
        b'{"kind":"quit"}',
        b'"answer"',
        b"\xff\xfe",
        b"",
        json.dumps(ASK.model_dump()).encode(),
    ],
)
def test_a_header_in_another_spelling_is_refused(ends, header):
    """Unknown fields, other types, other orders, doubles, and what only the gate may say."""
    with pytest.raises(WireError, match="A frame came whose header"):
        sent(ends, header).receive(FromTrainer, **BOUNDS)


@pytest.mark.parametrize("sizes", [(2**16 + 1, 0), (2, 101), (2**32 - 1, 2**64 - 1)])
def test_a_frame_beyond_its_bounds_is_refused_before_it_comes(ends, sizes):
    """By the sizes that it claims: nothing is waited for, or made room for."""
    one, other = ends
    one.sendall(struct.pack("<IQ", *sizes))
    with pytest.raises(WireError, match="at most 65,536 and 100 are read"):
        Channel(other).receive(FromTrainer, **BOUNDS, deadline=time.monotonic() + 60)


def test_bytes_that_trickle_do_not_put_off_the_deadline(ends):
    """It is one for the whole frame, not for each byte of it."""
    one, other = ends
    ended = threading.Event()

    def trickle() -> None:
        one.sendall(struct.pack("<IQ", 1000, 0))
        while not ended.wait(0.02):
            one.sendall(b" ")

    thread = threading.Thread(target=trickle)
    thread.start()
    try:
        begun = time.monotonic()
        with pytest.raises(TimeoutError):
            Channel(other).receive(FromTrainer, **BOUNDS, deadline=begun + 0.3)
        assert time.monotonic() - begun < 5
    finally:
        ended.set()
        thread.join()


def test_an_end_that_goes_in_the_middle_is_told_apart(ends):
    """It is no wrong frame: whoever supervises it starts it again."""
    one, other = ends
    one.sendall(b"\x05\0")
    one.close()
    with pytest.raises(ConnectionError):
        Channel(other).receive(FromTrainer, **BOUNDS)
