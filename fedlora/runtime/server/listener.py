"""uvicorn as we run it: strict HTTP/1.1, no patience with slow callers, TLS 1.2 or newer."""

import asyncio
import signal
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from starlette.types import ASGIApp
from uvicorn import Config, Server
from uvicorn.protocols.http.h11_impl import H11Protocol

from fedlora.errors import RunError

_PATIENCE_S = 20
"""From the opening of a connection, or the last answer on it, to the next request's head."""
_LARGEST_HEAD = 16 * 1024
_MOST_CONNECTIONS = 1000
_FAREWELL_S = 5
"""What requests in progress get when the process is told to stop."""
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2; those of 1.3 are all good."""


class ImpatientProtocol(H11Protocol):
    """h11 behind uvicorn, but a connection without a request in progress does not last.

    uvicorn itself waits for ever for the first request, and for the rest of a head.
    """

    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's own
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._waiting:
            self._waiting.cancel()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._wait()

    def _wait(self) -> None:
        if self._waiting:
            self._waiting.cancel()
        self._waiting = self.loop.call_later(_PATIENCE_S, self._give_up)

    def _give_up(self) -> None:
        before_first = self.cycle is None
        if before_first or self.cycle.response_complete:
            self.transport.abort()


def listener(
    app: ASGIApp, *, host: str, port: int, certificate: Path | None = None
) -> "_QuietServer":
    """Return a server for an app; with TLS if it is given a certificate, whose key is beside it.

    Raises:
        RunError: the certificate or its key cannot be read.
    """
    config = Config(
        app,
        host=host,
        port=port,
        http=ImpatientProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=_MOST_CONNECTIONS,
        h11_max_incomplete_event_size=_LARGEST_HEAD,
        timeout_keep_alive=_PATIENCE_S,
        timeout_graceful_shutdown=_FAREWELL_S,
        ssl_context_factory=(lambda *_: _context(certificate)) if certificate else None,
    )
    config.load()
    return _QuietServer(config)


async def serve(servers: Sequence[Server]) -> None:
    """Run servers until this process is told to stop (SIGTERM or SIGINT) or one of them ends."""

    def stop() -> None:
        for server in servers:
            server.should_exit = True

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    async with asyncio.TaskGroup() as group:
        for server in servers:
            group.create_task(server.serve()).add_done_callback(lambda _: stop())


class _QuietServer(Server):
    """Leaves the process's signals to ``serve``: of two servers, each would take them."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _context(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    try:
        context.load_cert_chain(certificate, certificate.with_suffix(".key"))
    except OSError as error:  # ssl.SSLError too
        raise RunError(
            f"{certificate}: this certificate and its key cannot be used ({error}). "
            "Make new ones with fedlora server renew."
        ) from error
    return context
