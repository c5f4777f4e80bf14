"""A supervisor in a process of its own, as the tests of it and of what it keeps want one."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedlora.runtime.processes.service_state import ServiceState, Supervision
from fedlora.runtime.processes.supervisor import services_file

ROOT = Path(__file__).parents[3]
_SUPERVISE = """
import json, os, sys
from pathlib import Path
from fedlora.errors import FedloraError
from fedlora.runtime.processes import log, service
from fedlora.runtime.processes.supervisor import supervise
service._GRACE = 1.0
log.start("supervisor")
folder, services = Path(sys.argv[1]), json.loads(sys.argv[2])
for values in services:
    values.setdefault("environment", {"PATH": os.environ["PATH"], "OUT": str(folder)})
    if "listen" in values:
        values["listen"] = Path(values["listen"])
    if "user" in values:
        values["user"] = tuple(values["user"])
try:
    supervise(lambda: [service.Service(**values) for values in services], folder=folder)
except FedloraError as error:
    sys.exit(f"error: {error}")
"""


def shell(name: str, script: str, **values: Any) -> dict[str, Any]:
    """Return a service that runs a script of the shell; ``$OUT`` is the supervisor's folder."""
    return {"name": name, "command": ["/bin/sh", "-c", script], **values}


@dataclass(frozen=True)
class Supervised:
    """A supervisor that runs."""

    folder: Path
    process: subprocess.Popen[str]

    def service(self, name: str) -> ServiceState:
        """Return how a service is; nothing was told yet of one that is stopped."""
        told = Supervision.read(services_file(self.folder))
        services = told.services if told else ()
        return next((s for s in services if s.name == name), ServiceState(name=name))

    def running(self, name: str) -> int:
        """Wait until a service runs, and return its pid."""
        wait_for(lambda: self.service(name).state == "running")
        process = self.service(name).process
        assert process is not None
        return process.pid

    def stop(self) -> list[dict[str, Any]]:
        """Ask the supervisor to stop, and return what it said, a mapping a line."""
        self.process.send_signal(signal.SIGTERM)
        _, said = self.process.communicate(timeout=30)
        return [json.loads(line) for line in said.splitlines()]


def start(folder: Path, services: Sequence[dict[str, Any]]) -> subprocess.Popen[str]:
    """Start a supervisor of ``services``."""
    return subprocess.Popen(
        [sys.executable, "-c", _SUPERVISE, str(folder), json.dumps(list(services))],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextmanager
def supervised(folder: Path, *services: dict[str, Any]) -> Iterator[Supervised]:
    """Run a supervisor of ``services`` while the block runs."""
    process = start(folder, services)
    try:
        yield Supervised(folder, process)
    finally:
        process.terminate()
        process.communicate(timeout=30)


def children_of(pid: int) -> list[int]:
    """Return the processes that a process has started, and that have not ended."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def written(path: Path) -> str:
    """Return what a file says: nothing before a whole line is there."""
    said = path.read_text() if path.exists() else ""
    return said if said.endswith("\n") else ""


def wait_for(condition: Callable[[], object], *, seconds: float = 60.0) -> None:
    """Wait until ``condition`` holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came to hold"
        time.sleep(0.05)
