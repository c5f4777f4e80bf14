"""A registry on loopback, in a thread of the test's own process."""

import asyncio
import ipaddress
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

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

    def pair(self, name: str) -> Tls:
        """Write a certificate for a name, and its key, signed by this authority."""
        return _pair(self.folder, name, self._ca())

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
