"""The fault campaign's own means: they must notice what they are there to notice."""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from random import Random

import pytest

from fedlora.adapter import AdapterState
from simulations.campaigns.faults import _drawn
from simulations.faults.faults import Fault
from simulations.faults.line import Line
from simulations.faults.one_hot import SITES, miscounted, place
from simulations.faults.site import make_clock, set_clock
from tests.strategies import make_spec


def adapter_with(updates: dict[tuple[int, str], float]) -> AdapterState:
    """Return an adapter that has a value in the place of each update."""
    state = AdapterState.initial(make_spec(rank=1, modules={"layer": (2, 20)}), seed=0)
    factors = [values for tensor, values in state.factors() if tensor.factor == "B"]
    for values in factors:
        values.zero_()
    first = factors[0].view(-1)
    for (number, site), value in updates.items():
        first[place(number, site)] = value
    return state


def test_an_adapter_with_each_update_once_is_right():
    """A third of three updates, whatever the last bits of a running mean."""
    once = {(n, site): 1 / 3 * (1 + 1e-7) for n in (1, 2) for site in SITES}
    assert miscounted(adapter_with(once), rounds=2) == []


@pytest.mark.parametrize("value", [0.0, 1 / 2, 2 / 3])
def test_an_update_that_is_lost_or_counted_twice_is_named(value):
    """Also one that stands for others, as in a mean of two."""
    once = {(n, site): 1 / 3 for n in (1, 2) for site in SITES}
    (wrong,) = miscounted(adapter_with(once | {(2, "east"): value}), rounds=2)
    assert wrong.startswith("round 2, east: ")


def test_an_update_of_a_round_to_come_is_named():
    """Nothing is there yet that was not trained."""
    once = {(n, site): 1 / 3 for n in (1, 2) for site in SITES}
    assert len(miscounted(adapter_with(once), rounds=1)) == len(SITES)


@pytest.fixture
def echo() -> Iterator[str]:
    """A server that sends back what it gets, once for each connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(connection.recv(100))

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def said_through(line: Line) -> bytes:
    """Return what comes back through a line; nothing if it is reset or silent."""
    host, port = line.address.split(":")
    try:
        with socket.create_connection((host, int(port)), 1) as connection:
            connection.sendall(b"hello")
            return connection.recv(100)
    except OSError:
        return b""


def test_a_line_does_what_its_mode_says(echo):
    """And is whole again afterwards."""
    with Line(echo) as line:
        heard = {}
        for mode in ("whole", "cut", "silent", "half", "slow"):
            line.become(mode)
            heard[mode] = said_through(line)
            line.become("whole")
        assert heard == {
            "whole": b"hello",
            "cut": b"",
            "silent": b"",
            "half": b"",
            "slow": b"hello",
        }
        assert said_through(line) == b"hello"


@pytest.mark.skipif(shutil.which("cc") is None, reason="the clock is made with a C compiler")
def test_a_clock_is_wrong_by_what_it_is_set_to(tmp_path):
    """While the process runs, and by time(2) and clock_gettime(2) alike."""
    site = tmp_path / "north"
    site.mkdir()
    assert make_clock(site)
    set_clock(site, seconds=-500)
    program = "import time; print(time.time() - float(input())); print(time.monotonic())"
    preload = {"LD_PRELOAD": str(tmp_path / "clock.so"), "CLOCK_SKEW": f"{site}.skew"}
    shown = subprocess.run(
        [sys.executable, "-c", program],
        input=f"{time.time()}\n",
        env=os.environ | preload,
        capture_output=True,
        text=True,
        check=True,
    )
    wrong, monotonic = map(float, shown.stdout.split())
    assert -500 <= wrong < -440
    assert abs(monotonic - time.monotonic()) < 60


def test_each_kind_is_tried_as_often_as_each_other():
    """But for those that take long."""
    kinds = [Fault(name, lambda *_: "") for name in "abc"]
    long = [Fault(name, lambda *_: "", long=True) for name in "xy"]
    drawn = _drawn([*kinds, *long], Random(0), trials=24)
    counts = {name: sum(fault.name == name for fault in drawn) for name in "abcxy"}
    assert counts["x"] == counts["y"] == 1
    assert sum(counts.values()) == 24
    assert max(counts[n] for n in "abc") - min(counts[n] for n in "abc") <= 1
