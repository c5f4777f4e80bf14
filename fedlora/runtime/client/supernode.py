"""How Flower's SuperNode is started: stock, in process isolation, with the site's key."""

import os
import secrets
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import fedlora
from fedlora import atomic
from fedlora.runtime.client.folder import SiteFolder
from fedlora.runtime.enrolment import JoinBundle
from fedlora.runtime.processes.service import Service

REFUSED = "Failed to activate SuperNode"
"""What a SuperNode logs before exit code 305 if SuperLink takes its like for alive."""
TURNED_AWAY = "SuperNode terminated gracefully"
"""What it logs when it is told to stop: by its supervisor, or by itself if its key is refused."""

_LOOPBACK = "127.0.0.1"
_PROBE_S = 5.0
_KEPT = ("LANG", "LC_ALL", "PATH", "TZ", "HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy")
"""What the SuperNode gets of the environment: words and the way out."""


def secret_file(folder: SiteFolder) -> Path:
    """Return the file with the 32 random bytes by which the SuperNode knows our gate."""
    return folder.run / "superexec.secret"


def address_file(folder: SiteFolder) -> Path:
    """Return the file with the ``host:port`` on which the SuperNode answers the gate."""
    return folder.run / "supernode.address"


def supernode(folder: SiteFolder, *, user: tuple[int, int] | None) -> Service:
    """Return the SuperNode as a service; its secret, its port and its CA are made anew in ``run``.

    Raises:
        EnrolmentError: the site has not enrolled.
        StorageError: the folder cannot be written.
    """
    join = JoinBundle.read(folder.join)
    home, authority = folder.run / "flower", folder.run / "ca.crt"
    port = _free_port()
    with atomic.storage_errors(folder.run):
        for path in (secret_file(folder), authority):
            path.unlink(missing_ok=True)
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
    atomic.write_secret(secret_file(folder), secrets.token_bytes(32))
    atomic.write_secret(authority, join.ca_certificate.encode())
    atomic.write_file(address_file(folder), f"{_LOOPBACK}:{port}")
    if user is not None:
        for path in (secret_file(folder), authority, home):
            os.chown(path, *user, follow_symlinks=False)
    options = {
        "--superlink": join.aggregator,
        "--root-certificates": authority,
        "--auth-supernode-private-key": folder.node_key,
        "--isolation": "process",
        "--superexec-auth-secret-file": secret_file(folder),
        "--host": _LOOPBACK,
        "--port": port,
    }
    program = (sys.executable, "-P", "-m", "fedlora.runtime.client.run_supernode", str(folder.path))
    return Service(
        name="supernode",
        command=[*program, *(str(part) for option in options.items() for part in option)],
        environment=_environment(home),
        user=user,
        ready=lambda: _answers(port),
    )


def _environment(home: Path) -> Mapping[str, str]:
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return kept | {
        "HOME": str(home),
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "PYTHONPATH": str(Path(fedlora.__file__).resolve().parents[1]),
        "PYTHONUNBUFFERED": "1",
    }


def _free_port() -> int:
    with socket.create_server((_LOOPBACK, 0)) as server:
        return int(server.getsockname()[1])


def _answers(port: int) -> bool:
    """Tell whether something answers HTTP at ``port``."""
    with suppress(OSError), socket.create_connection((_LOOPBACK, port), _PROBE_S) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return connection.recv(5) == b"HTTP/"
    return False
