"""One service: what it is, and the keeper that starts it again whenever it dies."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fedlora.runtime.processes import launcher, service_state
from fedlora.runtime.processes.log import pass_on
from fedlora.runtime.processes.service_log import ServiceLog
from fedlora.runtime.processes.service_state import Phase, Process, ServiceState

_FIRST_DELAY, _LONGEST_DELAY = 0.5, 60.0
"""Seconds before a service that died is started again: first, and at most; doubled each time."""
_HEALTHY = 60.0
"""Seconds that a service must have lived for its next delay to be the first again."""
_GRACE = 10.0
"""Seconds between SIGTERM and SIGKILL."""
_LOOK = 1.0
"""Seconds between two looks at a service."""
_FLOWERS_CODE = re.compile(r"^Exit Code: (\d+)|:\s+Exit Code: (\d+)")
"""Flower exits with status 1 for every error, and logs which it was."""


@dataclass(frozen=True, kw_only=True)
class Service:
    """A process to keep running, and all that it started."""

    name: str
    command: Sequence[str]
    """The first part is an absolute path."""
    environment: Mapping[str, str]
    """All of it: nothing of the supervisor's own environment comes through."""
    user: tuple[int, int] | None = None
    """The user and group that it runs as; only root can give another than its own."""
    listen: Path | None = None
    """A Unix socket that the service serves, as descriptor 3 in the manner of sd_listen_fds(3).

    The supervisor makes it, for the owner of its folder alone, and keeps it while the service
    restarts: who connects then waits and is not refused.
    """
    ready: Callable[[], bool] | None = None
    """Says within seconds whether the service answers; called from another thread."""
    takes_along: Sequence[str] = ()
    """Services that are killed when it ends: they would wait for what it began and never ends."""
    patience: float = 60.0
    """Seconds that it may be suspended, or not answer, before it is killed and started again."""


class Keeper:
    """Keeps one service running until its task is cancelled."""

    def __init__(
        self,
        service: Service,
        *,
        log: Path,
        listening: socket.socket | None,
        changed: Callable[[], None],
        ended: Callable[[Service], None],
    ) -> None:
        self._service = service
        self._listening = listening
        self._changed = changed
        self._ended = ended
        self._log = ServiceLog(log, alarm=self._warn)
        self.state = ServiceState(name=service.name)

    async def keep(self) -> None:
        """Start the service, again and again, until cancelled; then stop it."""
        delay = _FIRST_DELAY
        try:
            while True:
                began = time.monotonic()
                await self._live()
                self._ended(self._service)
                if time.monotonic() - began >= _HEALTHY:
                    delay = _FIRST_DELAY
                self._enter("waiting", retry_at=time.time() + delay)
                self._warn(f"ended: {self.state.last_exit}; starts again in {delay:g} s")
                await asyncio.sleep(delay)
                delay = min(2 * delay, _LONGEST_DELAY)
                self.state.restarts += 1
        finally:
            self._enter("stopped")

    def kill(self) -> None:
        """Kill the service's process, if it has one; it is started again."""
        if self.state.process is not None:
            service_state.kill(self.state.process.pid, signal.SIGKILL)

    async def _live(self) -> None:
        """Run one process of the service until it ends; a cancelled task ends it first."""
        try:
            process = self._start()
        except OSError as error:
            self.state.last_exit = f"cannot be started: {error}"
            return
        self._enter("starting", process=Process.of(process.pid))
        watch = asyncio.get_running_loop().create_task(self._watch(process.pid))
        try:
            with self._log.of(process):
                try:
                    await _end_of(process.pid)
                except asyncio.CancelledError:
                    await _stop(process.pid)
                    raise
                finally:
                    watch.cancel()
                    service_state.kill(process.pid, signal.SIGKILL)  # what it started, too
                    status = process.wait()
        finally:
            self.state.last_words = tuple(self._log.last_words)
        self.state.last_exit = _how(status, self.state.last_words)

    def _start(self) -> subprocess.Popen[bytes]:
        handle = self._listening.fileno() if self._listening else None
        user = "-" if self._service.user is None else "{}:{}".format(*self._service.user)
        self._log.last_words.clear()
        return subprocess.Popen(
            [
                *(sys.executable, "-I", "-S", launcher.__file__, str(os.getpid()), user),
                *("-" if handle is None else str(handle), *self._service.command),
            ],
            env=dict(self._service.environment),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=() if handle is None else (handle,),
            start_new_session=True,
        )

    async def _watch(self, pid: int) -> None:
        """Tell when the service is ready; kill it when it has not been for too long."""
        service, well = self._service, time.monotonic()
        while True:
            if not service_state.suspended(pid) and await _answers(service):
                well = time.monotonic()
                if self.state.state == "starting":
                    self._enter("running", process=self.state.process)
            elif time.monotonic() - well > service.patience:
                self._warn(f"did not answer for {service.patience:g} s: killed")
                service_state.kill(pid, signal.SIGKILL)
                return
            await asyncio.sleep(_LOOK)

    def _enter(
        self,
        state: Phase,
        *,
        process: Process | None = None,
        retry_at: float | None = None,
    ) -> None:
        self.state.state, self.state.process = state, process
        self.state.since, self.state.retry_at = time.time(), retry_at
        self._changed()

    def _warn(self, event: str) -> None:
        pass_on(event, service=self._service.name)


async def _answers(service: Service) -> bool:
    try:
        return service.ready is None or await asyncio.to_thread(service.ready)
    except Exception:  # noqa: BLE001 - whatever keeps it from answering: it does not
        return False


async def _stop(pid: int) -> None:
    """End a process, first kindly; the caller kills it if that took too long."""
    service_state.kill(pid, signal.SIGTERM)
    with suppress(TimeoutError):
        await asyncio.wait_for(_end_of(pid), _GRACE)


async def _end_of(pid: int) -> None:
    """Wait for a child to end; it is not waited for in the sense of waitpid(2)."""
    loop, handle = asyncio.get_running_loop(), os.pidfd_open(pid)
    ended: asyncio.Future[None] = loop.create_future()

    def tell_end() -> None:
        loop.remove_reader(handle)
        ended.set_result(None)

    loop.add_reader(handle, tell_end)
    try:
        await ended
    finally:
        loop.remove_reader(handle)
        os.close(handle)


def _how(status: int, last_words: Sequence[str]) -> str:
    """Return how a process ended: by a signal, with Flower's exit code, or with its status."""
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    codes = [found for line in last_words for found in [_FLOWERS_CODE.search(line)] if found]
    if status and codes:
        return f"Flower's exit code {codes[-1][1] or codes[-1][2]}"
    return f"exit status {status}"
