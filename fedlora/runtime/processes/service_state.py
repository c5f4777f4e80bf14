"""What a supervisor tells of its services, and what a later one needs to clean up after it."""

import json
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from fedlora import atomic

Phase = Literal["starting", "running", "waiting", "stopped"]


@dataclass(frozen=True)
class Process:
    """A process of this machine: no other ever has its pid, start and boot."""

    pid: int
    start: int
    """Clock ticks between boot and the start of the process."""
    boot: str

    @classmethod
    def of(cls, pid: int) -> Self:
        """Return the process that has ``pid`` now.

        Raises:
            OSError: there is none.
        """
        return cls(pid=pid, start=int(_facts(pid)[19]), boot=_boot())

    @property
    def alive(self) -> bool:
        """Whether it runs still; one that has ended and was not waited for does not."""
        try:
            return Process.of(self.pid) == self and _facts(self.pid)[0] != "Z"
        except OSError:
            return False


@dataclass(kw_only=True)
class ServiceState:
    """How one service is."""

    name: str
    state: Phase = "stopped"
    since: float = field(default_factory=time.time)
    """When it came into this state, in seconds since 1970."""
    process: Process | None = None
    restarts: int = 0
    retry_at: float | None = None
    """When it is started again, in seconds since 1970."""
    last_exit: str | None = None
    """How its last process ended: a status, a signal, or Flower's exit code."""
    last_words: tuple[str, ...] = ()
    """What that process said last."""


@dataclass(frozen=True, kw_only=True)
class Supervision:
    """A supervisor and its services, as they were told last."""

    supervisor: Process
    services: Sequence[ServiceState]

    @classmethod
    def read(cls, path: Path, *, of: int | None = None) -> Self | None:
        """Read the file that a supervisor writes; none if there is none, or none that it wrote.

        Args:
            path: of the file.
            of: the user who must have written it; anybody, if nothing else.
        """
        try:
            with path.open("rb") as file:
                if of not in {None, os.fstat(file.fileno()).st_uid}:
                    return None
                values = json.loads(file.read())
            services = [_service(state) for state in values["services"]]
            return cls(supervisor=Process(**values["supervisor"]), services=services)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, path: Path) -> None:
        """Write the file.

        Raises:
            StorageError: it cannot be written.
        """
        atomic.write_file(path, json.dumps(asdict(self), indent=1))

    def clear(self) -> list[str]:
        """Kill what is left of the services of a supervisor that has gone, and name them."""
        left = [s for s in self.services if s.process is not None and s.process.alive]
        for state in left:
            if state.process is not None:
                kill(state.process.pid, signal.SIGKILL)
        return [state.name for state in left]


def _service(values: dict[str, Any]) -> ServiceState:
    process, words = values["process"], values["last_words"]
    return ServiceState(
        **values | {"process": process and Process(**process), "last_words": tuple(words)}
    )


def kill(leader: int, number: int) -> None:
    """Send a signal to a service's process and all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(leader, number)


def suspended(leader: int) -> bool:
    """Tell whether a service's process, or one that it started, was stopped by a signal."""
    return any(facts[0] in "Tt" for facts in _family(leader))


def _family(leader: int) -> Iterator[list[str]]:
    """Yield the facts of a process and of all that descend from it."""
    children: dict[int, list[int]] = {}
    facts: dict[int, list[str]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):  # it has ended since
                facts[int(entry.name)] = _facts(int(entry.name))
                children.setdefault(int(facts[int(entry.name)][1]), []).append(int(entry.name))
    line = [leader] if leader in facts else []
    while line:
        pid = line.pop()
        yield facts[pid]
        line += children.get(pid, [])


def _facts(pid: int) -> list[str]:
    """Return the fields of proc_pid_stat(5) from the third on: state, parent, group, session, …."""
    return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
