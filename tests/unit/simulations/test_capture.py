"""The proxy that counts a site's bytes."""

import socket
import threading

from simulations.benchmarks.capture import Tap


def test_a_tap_passes_all_bytes_on_and_counts_them_both_ways():
    """A megabyte up, as much and one byte more down, over a connection that then ends."""
    up, down = bytes(1 << 20), bytes((1 << 20) + 1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        heard = bytearray()

        def answer() -> None:
            connection = server.accept()[0]
            with connection:
                while len(heard) < len(up):
                    heard.extend(connection.recv(65536))
                connection.sendall(down)

        answering = threading.Thread(target=answer)
        answering.start()
        with Tap(f"127.0.0.1:{server.getsockname()[1]}") as tap:
            host, port = tap.address.split(":")
            with socket.create_connection((host, int(port)), timeout=30) as site:
                site.sendall(up)
                received = bytearray()
                while piece := site.recv(65536):
                    received.extend(piece)
        answering.join(30)
    assert (heard, received) == (up, down)
    assert tap.bytes == {"up": len(up), "down": len(down)}
