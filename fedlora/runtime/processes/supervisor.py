"""Keeps the processes of a host running: starts them, restarts what dies, stops them in order.

::

    run/supervisor.lock   held by the one supervisor of the folder
    run/services.json     how each service is, for whoever asks
    logs/NAME.log         what each service says

A supervisor that is killed takes its services with it; should one be left all the same, the next
supervisor of the folder ends it first.
"""

import asyncio
import fcntl
import os
import signal
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from fedlora.atomic import storage_errors
from fedlora.errors import RunError, StorageError
from fedlora.runtime.processes.log import say, warn
from fedlora.runtime.processes.service import Keeper, Service
from fedlora.runtime.processes.service_state import Process, Supervision


def services_file(folder: Path) -> Path:
    """Return the file in which a supervisor of ``folder`` tells how its services are."""
    return folder / "run" / "services.json"


def supervise(prepare: Callable[[], Sequence[Service]], *, folder: Path) -> None:
    """Keep services running until SIGTERM or SIGINT, then stop them, the last one first.

    Call it from the main thread.

    Args:
        prepare: returns the services. It is called when no other supervisor has the folder, and may
            write there what they need; its errors are passed on.
        folder: of the host.

    Raises:
        RunError: another supervisor has the folder, or a socket's path cannot be used.
        StorageError: the folder cannot be written.
    """
    for name in ("run", "logs"):
        with storage_errors(folder / name):
            (folder / name).mkdir(mode=0o755, parents=True, exist_ok=True)
    with _alone(folder / "run" / "supervisor.lock"):
        # Only of a file of this very user's: the folder's owner could name any process in another.
        before = Supervision.read(services_file(folder), of=os.geteuid())
        for name in before.clear() if before else ():
            warn("killed: a supervisor that was killed had left it", service=name)
        services = prepare()
        sockets = {s.name: _listen(s.listen, folder) for s in services if s.listen}
        try:
            asyncio.run(_Supervisor(services, folder=folder, sockets=sockets).run())
        finally:
            for listening in sockets.values():
                listening.close()


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the lock of the one supervisor of a folder.

    Root does this in a folder that another owns, who may have put a link there: none is followed.
    """
    with storage_errors(path):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with os.fdopen(handle, "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise RunError(
                f"{path.parent.parent}: the process {file.read(20).decode()} runs it already. "
                "Stop that one first."
            ) from None
        _note_owner(file)
        yield


def _note_owner(file: BinaryIO) -> None:
    """Write who holds the lock; a full disk does not keep it from holding."""
    with suppress(OSError):
        file.truncate(0)
        file.seek(0)
        file.write(str(os.getpid()).encode())
        file.flush()


def _listen(path: Path, folder: Path) -> socket.socket:
    """Return a socket at ``path`` that the owner of ``folder`` alone can connect to."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        path.unlink(missing_ok=True)
        listening.bind(str(path))
        owner = folder.stat()
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
        listening.listen()
    except OSError as error:
        listening.close()
        raise RunError(
            f"{path}: no socket can be made there ({error.strerror or error}). Its path may have "
            "107 bytes at most, and the folder must be on a local disk."
        ) from None
    finally:
        os.umask(mask)
    return listening


class _Supervisor:
    """The keepers of all services, and the file that tells of them."""

    def __init__(
        self, services: Sequence[Service], *, folder: Path, sockets: Mapping[str, socket.socket]
    ) -> None:
        self._file = services_file(folder)
        self._self = Process.of(os.getpid())
        self._keepers = [
            Keeper(
                service,
                log=folder / "logs" / f"{service.name}.log",
                listening=sockets.get(service.name),
                changed=self._write,
                ended=self._take_along,
            )
            for service in services
        ]

    async def run(self) -> None:
        """Keep the services until a signal asks to stop, then stop them, the last one first."""
        loop, asked = asyncio.get_running_loop(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, asked.set)
        say("started", pid=os.getpid())
        tasks = [loop.create_task(keeper.keep()) for keeper in self._keepers]
        waiting = loop.create_task(asked.wait())
        await asyncio.wait([waiting, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in reversed(tasks):
            task.cancel()
            await asyncio.wait([task])
        waiting.cancel()
        say("stopped")
        for task in tasks:
            if not task.cancelled():
                task.result()  # a keeper never ends by itself: this raises what ended it

    def _take_along(self, service: Service) -> None:
        for keeper in self._keepers:
            if keeper.state.name in service.takes_along:
                keeper.kill()

    def _write(self) -> None:
        states = [keeper.state for keeper in self._keepers]
        try:
            Supervision(supervisor=self._self, services=states).write(self._file)
        except StorageError as error:
            warn(str(error))
