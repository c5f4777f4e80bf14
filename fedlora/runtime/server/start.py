"""Which processes an aggregator is made of."""

import os
import sys
import urllib.request
from collections.abc import Callable
from contextlib import suppress

from fedlora.runtime.processes import log
from fedlora.runtime.processes.service import Service
from fedlora.runtime.processes.supervisor import supervise
from fedlora.runtime.server.configuration import Configuration
from fedlora.runtime.server.folder import ServerFolder
from fedlora.runtime.server.superlink import superlink_command


def start(folder: ServerFolder) -> None:
    """Keep the aggregator's processes running until SIGTERM or SIGINT.

    Raises:
        RunError: the folder is not an aggregator's, or another supervisor has it.
        StorageError: it cannot be written.
    """
    log.start("supervisor")
    supervise(lambda: services(folder), folder=folder.path)


def services(folder: ServerFolder) -> list[Service]:
    """Return SuperLink, which the sites cannot reach, the front, the coordinator, the registry.

    Raises:
        RunError: the folder's configuration is missing or wrong.
    """
    configuration = Configuration.read(folder.configuration)
    command, environment = superlink_command(folder)
    with_store = folder.store.is_dir()  # folders that were made before releases have none
    return [
        Service(name="superlink", command=command, environment=environment),
        _own("front", folder, ready=_answers(configuration.metrics_port)),
        _own("coordinator", folder),
        *([_registry(folder, configuration)] if with_store else []),
    ]


def _own(name: str, folder: ServerFolder, *, ready: Callable[[], bool] | None = None) -> Service:
    module = f"fedlora.runtime.server.{name}"
    command = [sys.executable, "-m", module, str(folder.path)]
    environment = {**os.environ, "FLWR_TELEMETRY_ENABLED": "0"}
    return Service(name=name, command=command, environment=environment, ready=ready)


def _registry(folder: ServerFolder, configuration: Configuration) -> Service:
    """Return the registry of releases; it shows the front's certificate."""
    listen = configuration.listen
    options = {
        "--address": f"{f'[{listen}]' if ':' in listen else listen}:{configuration.registry_port}",
        "--certificate": folder.front_certificate,
        "--key": folder.front_certificate.with_suffix(".key"),
        "--tokens": folder.callers,
    }
    arguments = [str(part) for option in options.items() for part in option]
    command = [sys.executable, "-m", "fedlora", "registry", "serve", str(folder.store), *arguments]
    return Service(name="registry", command=command, environment=dict(os.environ))


def _answers(port: int) -> Callable[[], bool]:
    """Return whether the front's own listener, on loopback, answers."""

    def ready() -> bool:
        with suppress(OSError):
            address = f"http://127.0.0.1:{port}/healthz"
            urllib.request.urlopen(address, timeout=5).close()
            return True
        return False

    return ready
