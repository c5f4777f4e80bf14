"""An aggregator's processes on loopback, and the keys of sites, for tests."""

import base64
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from fedlora.runtime.server.configuration import Configuration
from fedlora.runtime.server.folder import ServerFolder
from fedlora.runtime.server.installation import install
from fedlora.runtime.server.superlink import flower_environment, superlink_command

ROOT = Path(__file__).parents[1]
_PATIENCE_S = 60


def openssh(key: ec.EllipticCurvePrivateKey) -> str:
    """Return a node's public key as a site sends it."""
    form = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    return key.public_key().public_bytes(*form).decode()


def new_gate_key() -> str:
    """Return the public key of a gate as a site sends it."""
    raw = ed25519.Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    return base64.b64encode(raw).decode()


def new_keys() -> tuple[str, str]:
    """Return the public keys of a new site: its node's and its gate's."""
    return openssh(ec.generate_private_key(ec.SECP384R1())), new_gate_key()


def free_ports(count: int) -> list[int]:
    """Return ports of loopback that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def new_aggregator(path: Path, *, sites: list[str]) -> ServerFolder:
    """Make an aggregator's folder with ports of its own."""
    front, superlink, metrics, registry = free_ports(4)
    configuration = Configuration(
        hosts=(f"127.0.0.1:{front}",),
        listen="127.0.0.1",
        port=front,
        superlink_port=superlink,
        metrics_port=metrics,
        registry_port=registry,
    )
    return install(path, configuration, sites=sites)


@contextmanager
def process(command: list[str], *, env: dict[str, str], log: Path) -> Iterator[subprocess.Popen]:
    """Run a command until the block ends; what it says goes to a file."""
    with log.open("ab") as said:
        started = subprocess.Popen(command, env=env, stdout=said, stderr=said, cwd=ROOT)
    try:
        yield started
    finally:
        started.terminate()
        try:
            started.wait(20)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()


@contextmanager
def running_superlink(folder: ServerFolder) -> Iterator[subprocess.Popen]:
    """Run an aggregator's SuperLink; it answers when the block begins."""
    command, env = superlink_command(folder)
    port = Configuration.read(folder.configuration).superlink_port
    with process([*command], env={**env}, log=folder.logs / "superlink.log") as started:
        wait_until(lambda: healthy(f"https://127.0.0.1:{port}/health", folder), started)
        yield started


@contextmanager
def running_front(folder: ServerFolder) -> Iterator[subprocess.Popen]:
    """Run an aggregator's front; it and the SuperLink behind it answer when the block begins."""
    command = [sys.executable, "-m", "fedlora.runtime.server.front", str(folder.path)]
    env = {**flower_environment(folder), "PYTHONPATH": str(ROOT)}
    address = Configuration.read(folder.configuration).address
    with process(command, env=env, log=folder.logs / "front.log") as started:
        wait_until(lambda: healthy(f"https://{address}/healthz", folder), started)
        yield started


def trusting(folder: ServerFolder) -> ssl.SSLContext:
    """Return TLS that trusts an aggregator's CA alone."""
    return ssl.create_default_context(cafile=str(folder.ca_certificate))


def healthy(url: str, folder: ServerFolder) -> bool:
    """Tell whether a server answers 200."""
    try:
        return httpx.get(url, verify=trusting(folder)).status_code == 200
    except httpx.TransportError:
        return False


def wait_until(condition, started: subprocess.Popen | None = None) -> None:
    """Wait until a condition holds; a process that ends before is an error."""
    until = time.monotonic() + _PATIENCE_S
    while not condition():
        if started is not None and started.poll() is not None:
            raise RuntimeError(f"{started.args} ended with {started.returncode}")
        if time.monotonic() > until:
            raise TimeoutError("this should have happened by now")
        time.sleep(0.1)
