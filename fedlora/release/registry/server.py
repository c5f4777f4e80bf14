"""A registry on a port: TLS or loopback, the door, the service, and the health that others ask for.

There is no reflection: who calls has the protocol's file (``proto/fedlora/registry/v1``).
"""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import grpc
from grpc_health.v1.health import aio as health
from grpc_health.v1.health_pb2 import HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

from fedlora.errors import ReleaseError
from fedlora.registry.v1.registry_pb2 import DESCRIPTOR
from fedlora.registry.v1.registry_pb2_grpc import add_RegistryServicer_to_server
from fedlora.release.credentials import as_certificates, as_pair
from fedlora.release.registry.address import Address
from fedlora.release.registry.callers import CallersFile
from fedlora.release.registry.door import Door, Tell
from fedlora.release.registry.incoming import Incoming
from fedlora.release.registry.limits import Limits
from fedlora.release.registry.service import Service
from fedlora.release.store import Store

_FAREWELL_S = 5
"""What calls in progress get when the registry is told to stop."""
_SERVICE = DESCRIPTOR.services_by_name["Registry"].full_name


@dataclass(frozen=True, kw_only=True)
class Tls:
    """PEM files; they are read when the registry starts."""

    certificate: Path
    """The registry's own, and those between it and its authority."""
    key: Path
    client_ca: Path | None = None
    """Whose certificates callers must have; without it they need none."""

    def credentials(self) -> grpc.ServerCredentials:
        """Return what gRPC takes.

        Raises:
            ReleaseError: a file cannot be read, or is something else.
        """
        with _of(f"{self.certificate}, {self.key}"):
            certificate, key = as_pair(_read(self.certificate), _read(self.key))
        ca = None
        if self.client_ca is not None:
            with _of(str(self.client_ca)):
                ca = as_certificates(_read(self.client_ca))
        return grpc.ssl_server_credentials(
            [(key, certificate)],
            root_certificates=ca,
            require_client_auth=ca is not None,
        )


class Server:
    """A registry. Use it in ``async with``.

    Args:
        store: what it serves.
        address: where it listens; port 0 for one that is free.
        tls: without it, it listens on loopback alone.
        callers: who may call; without a list, whoever reaches it, and it listens on loopback alone.
        limits: what it keeps to.
        tell: takes the log's lines.

    Raises:
        ReleaseError: others could listen in or call, or another registry serves the store.
    """

    def __init__(
        self,
        store: Store,
        *,
        address: Address,
        tls: Tls | None = None,
        callers: CallersFile | None = None,
        limits: Limits | None = None,
        tell: Tell,
    ) -> None:
        if not address.is_loopback and (tls is None or callers is None):
            raise ReleaseError(
                f"{address}: beyond loopback, a registry needs a certificate and a list of callers "
                "(--certificate, --key and --tokens)."
            )
        self.address = address
        self._tls, self._callers, self._tell = tls, callers, tell
        self._limits = limits or Limits()
        self._store = store
        self._health = health.HealthServicer()

    async def __aenter__(self) -> Self:
        self._incoming = Incoming(self._store.path, most=self._limits.uploads)
        try:
            self._store.sweep()
        except ReleaseError as error:
            self._tell(f"nothing is swept: {error}")
        self._server = grpc.aio.server(
            interceptors=[
                Door(self._callers, limits=self._limits, store=self._store.path, tell=self._tell)
            ],
            options=self._limits.server_options(),
            maximum_concurrent_rpcs=self._limits.calls,
        )
        self._service = Service(self._store, incoming=self._incoming, limits=self._limits)
        add_RegistryServicer_to_server(self._service, self._server)
        add_HealthServicer_to_server(self._health, self._server)
        try:
            self.address = Address(self.address.host, self._listen())
            await self._server.start()
        except BaseException:
            self._incoming.close()
            raise
        await self._health.set(_SERVICE, HealthCheckResponse.SERVING)
        self._tell("registry starts", address=str(self.address), tls=self._tls is not None)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._health.enter_graceful_shutdown()
        self._service.stop()
        await self._server.stop(_FAREWELL_S)
        self._incoming.close()
        self._tell("registry stops")

    def _listen(self) -> int:
        try:
            if self._tls is None:
                return self._server.add_insecure_port(str(self.address))
            return self._server.add_secure_port(str(self.address), self._tls.credentials())
        except RuntimeError:
            raise ReleaseError(
                f"{self.address}: nothing can listen there. Is another process doing so?"
            ) from None


async def serve(server: Server) -> None:
    """Serve until SIGTERM or SIGINT. Call it from the main thread.

    Raises:
        ReleaseError: the registry cannot start.
    """
    asked = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, asked.set)
    async with server:
        await asked.wait()


@contextmanager
def _of(files: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ReleaseError(f"{files}: {error}.") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ReleaseError(f"{path}: it cannot be read ({error.strerror}).") from None
