"""How Flower's SuperLink is started: on loopback, with TLS, node authentication and a database."""

import os
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedlora.runtime.server.configuration import Configuration
from fedlora.runtime.server.folder import ServerFolder

_ARENAS = 2
"""Of glibc's allocator. By default each of SuperLink's threads keeps freed chunks of adapters to
itself: with 40 million parameters its peak was 869 MB for 2 sites and 1,237 for 8. With two it was
680 to 819 for 2 sites, and 814 to 825 for 8."""


def superlink_command(folder: ServerFolder) -> tuple[Sequence[str], Mapping[str, str]]:
    """Return the command line and the environment of an aggregator's SuperLink.

    Raises:
        RunError: the folder's configuration is missing or wrong.
    """
    configuration = Configuration.read(folder.configuration)
    certificate = folder.superlink_certificate
    command = {
        "--host": "127.0.0.1",
        "--port": configuration.superlink_port,
        "--ssl-ca-certfile": folder.ca_certificate,
        "--ssl-certfile": certificate,
        "--ssl-keyfile": certificate.with_suffix(".key"),
        "--database": folder.superlink_database,
        "--isolation": "process",
        "--superexec-auth-secret-file": folder.superexec_secret,
    }
    program = Path(sysconfig.get_path("scripts")) / "flower-superlink"
    switches = "--enable-supernode-auth", "--disable-runtime-dependency-installation"
    options = [str(part) for option in command.items() for part in option]
    environment = {**flower_environment(folder), "MALLOC_ARENA_MAX": str(_ARENAS)}
    return (str(program), *options, *switches), environment


def flower_environment(folder: ServerFolder) -> Mapping[str, str]:
    """Return the environment of Flower's processes: nothing phones home or installs packages."""
    return {
        **os.environ,
        "FLWR_HOME": str(folder.flower_home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    }
