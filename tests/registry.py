"""A registry on loopback, in a thread of the test's own process."""

import asyncio
import ipaddress
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fedlora.release.registry.address import Address
from fedlora.release.registry.server import Server, Tls
from fedlora.release.store import Store


@dataclass
class Running:
    """A registry that runs, and what it logged."""

    address: str
    lines: list[dict[str, Any]]


@contextmanager
def served(store: Store, *, address: str = "127.0.0.1:0", **options: Any) -> Iterator[Running]:
    """Serve a store during the block."""
    running = Running(address="", lines=[])
    ready, stop = threading.Event(), asyncio.Event()
    failed: list[BaseException] = []
    loop = asyncio.new_event_loop()

    def tell(event: str, /, **facts: object) -> None:
        running.lines.append({"event": event, **facts})

    async def serve() -> None:
        server = Server(store, address=Address.of(address), tell=tell, **options)
        async with server:
            running.address = str(server.address)
            ready.set()
            await stop.wait()

    def work() -> None:
        try:
            loop.run_until_complete(serve())
        except BaseException as error:  # noqa: BLE001 - the test raises it
            failed.append(error)
        finally:
            ready.set()
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()

    thread = threading.Thread(target=work)
    thread.start()
    ready.wait()
    try:
        if not failed:
            yield running
    finally:
        if not failed:
            loop.call_soon_threadsafe(stop.set)
        thread.join()
    if failed:
        raise failed[0]


@dataclass(frozen=True)
class Authority:
    """A certificate authority that signs for loopback and for callers.

    Args:
        folder: where the files go.
    """

    folder: Path

    def pair(self, name: str, *, client_ca: Path | None = None) -> Tls:
        """Write a certificate for a name, and its key, signed by this authority."""
        return replace(_pair(self.folder, name, self._ca()), client_ca=client_ca)

    @property
    def certificate(self) -> Path:
        """The authority's own."""
        self._ca()
        return self.folder / "ca.crt"

    def _ca(self) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        key_file = self.folder / "ca.key"
        if not key_file.exists():
            _pair(self.folder, "ca", None)
        key = serialization.load_pem_private_key(key_file.read_bytes(), password=None)
        return x509.load_pem_x509_certificate((self.folder / "ca.crt").read_bytes()), key


def _pair(
    folder: Path, name: str, ca: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None
) -> Tls:
    folder.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    loopback = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(ca[0].subject if ca else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=ca is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name), loopback]), critical=False)
        .sign(ca[1] if ca else key, hashes.SHA256())
    )
    paths = Tls(certificate=folder / f"{name}.crt", key=folder / f"{name}.key")
    paths.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return paths


class Line:
    """A way to a registry that is cut for each connection that ``cuts`` has a number of bytes for.

    Args:
        to: the registry's ``host:port``.
        cuts: bytes, both ways together, after which a connection ends, one after the other.
    """

    def __init__(self, to: str, *, cuts: Sequence[int]) -> None:
        host, _, port = to.rpartition(":")
        self._to = host, int(port)
        self._cuts = list(cuts)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
        self.bytes = 0
        """That went through, both ways together."""
        self.connections = 0
        self._ends: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._threads[0].join()
        for end in self._ends:
            _shut(end)
        for thread in self._threads:
            thread.join()
        for end in self._ends:
            end.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._server.accept()
                self._ends.append(near)
                self.connections += 1
                far = socket.create_connection(self._to)
                self._ends.append(far)
                last = self.bytes + self._cuts.pop(0) if self._cuts else None
                for source, sink in ((near, far), (far, near)):
                    thread = threading.Thread(target=self._carry, args=(source, sink, last))
                    self._threads.append(thread)
                    thread.start()

    def _carry(self, source: socket.socket, sink: socket.socket, last: int | None) -> None:
        with suppress(OSError):
            while (last is None or self.bytes < last) and (data := source.recv(2**16)):
                sink.sendall(data)
                self.bytes += len(data)
        for end in (source, sink):
            _shut(end)


def _shut(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
