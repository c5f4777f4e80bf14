"""A connection without a request in progress does not last, and a slow head is none."""

import asyncio
import socket
import threading
import time
from contextlib import closing
from http.client import HTTPConnection

import pytest
from starlette.responses import PlainTextResponse

from fedlora.runtime.server import listener
from tests.deployment import free_ports, wait_until

REQUEST = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"


@pytest.fixture(name="port")
def _port(monkeypatch):
    monkeypatch.setattr(listener, "_PATIENCE_S", 1)
    [port] = free_ports(1)
    server = listener.listener(PlainTextResponse("yes"), host="127.0.0.1", port=port)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    wait_until(lambda: server.started)
    yield port
    server.should_exit = True
    thread.join(20)


def seconds_until_closed(connection, *, dripping=b""):
    """Return how long the server holds a connection on which a byte comes now and then."""
    began = time.monotonic()
    connection.settimeout(0.1)
    drops = iter(dripping)
    while time.monotonic() - began < 10:
        try:
            if not connection.recv(1000):
                break
        except TimeoutError:
            connection.send(bytes([next(drops)]) if dripping else b"")
        except ConnectionError:
            break
    return time.monotonic() - began


@pytest.mark.parametrize("before", [b"", REQUEST], ids=["first", "second"])
@pytest.mark.parametrize("dripping", [b"", REQUEST * 10], ids=["silent", "dripping"])
def test_a_request_that_does_not_come_in_time_is_not_waited_for(port, before, dripping):
    """Neither silence nor a head that comes byte by byte holds a connection, new or kept alive."""
    with closing(socket.create_connection(("127.0.0.1", port))) as connection:
        if before:
            connection.sendall(before)
            assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        assert 0.5 < seconds_until_closed(connection, dripping=dripping) < 5


def test_requests_that_come_in_time_are_answered(port):
    """The connection is kept alive between them, for longer than the patience with one."""
    connection = HTTPConnection("127.0.0.1", port)
    with closing(connection):
        connection.connect()
        first = connection.sock
        for _ in range(8):
            connection.request("GET", "/")
            assert connection.getresponse().read() == b"yes"
            time.sleep(0.2)
        assert connection.sock is first
