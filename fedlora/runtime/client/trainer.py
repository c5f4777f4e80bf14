"""The trainer: ``python -m fedlora.runtime.client.trainer DIR``, with its socket as descriptor 3.

It finds out how isolated it is before it imports what reads data, says so to whoever connects, and
then does what the gate asks, one question after another. The base and the tokenised data stay in
memory between them. What it must know comes with the question, what it must remember is in its own
folder, and for each draw of noise it asks the gate.
"""

import os
import signal
import socket
import sys
from pathlib import Path

from fedlora.errors import RunError
from fedlora.runtime.client.frames import Channel, Hello
from fedlora.runtime.client.probes import report
from fedlora.runtime.processes import log

_LISTENING = 3
"""First descriptor that is handed over, as systemd's socket activation does (sd_listen_fds(3))."""


def main() -> None:
    """Serve until killed."""
    log.start("trainer")
    signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
    hello = Hello(report=report(Path(sys.argv[1])))
    listener = _listener()
    while True:
        connection, _ = listener.accept()
        channel = Channel(connection)
        try:
            channel.send(hello)
            from fedlora.runtime.client import work  # noqa: PLC0415 - never before the probes

            while True:
                work.answer(channel)
        except ConnectionError:
            channel.close()


def _listener() -> socket.socket:
    """Return the socket that was handed over.

    Raises:
        RunError: there is none.
    """
    handed = (os.environ.get("LISTEN_FDS"), os.environ.get("LISTEN_PID"))
    if handed != ("1", str(os.getpid())):
        raise RunError(
            "The trainer takes one listening socket as descriptor 3, with LISTEN_FDS=1 and "
            f"LISTEN_PID={os.getpid()}, but these are {handed[0]} and {handed[1]}. Start it with "
            "fedlora client start."
        )
    return socket.socket(fileno=_LISTENING)


if __name__ == "__main__":
    main()
