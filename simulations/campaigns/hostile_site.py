"""The site that a hostile trainer is set upon, and what lies about it to be reached."""

import ctypes
import json
import mmap
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from fedlora.runtime.client import isolation
from fedlora.runtime.client.folder import SiteFolder
from fedlora.runtime.site.memory import FOLDER
from simulations.campaigns import hostile_program

SITE = "north"

USER = 64_123
"""Whom the trainer runs as: nobody's number."""

_LIBC = ctypes.CDLL(None, use_errno=True)
_BAIT = ctypes.create_string_buffer(b"a key")
_IPC_CREAT, _IPC_RMID = 0o1000, 0
_SHARED = ("/tmp", "/dev/shm")  # noqa: S108 - what is shared is the point


@contextmanager
def site() -> Iterator[SiteFolder]:
    """Yield the folder of a site with data, keys and a policy."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        Path(name).chmod(0o755)
        folder = SiteFolder(Path(name) / "site")
        for path in (folder.credentials, folder.gate, folder.run, folder.logs):
            path.mkdir(parents=True)
        folder.node_key.write_text("a key")
        folder.configuration.write_text("data: …")
        rows = [{"prompt": f"What is {n}?", "completion": f"A number, {n}."} for n in range(20)]
        data_of(folder).write_text("\n".join(map(json.dumps, rows)))
        before = os.environ.get(FOLDER)
        os.environ[FOLDER] = str(folder.gate)
        stack.callback(_restore, before)
        yield folder


def _restore(before: str | None) -> None:
    if before is None:
        del os.environ[FOLDER]
    else:
        os.environ[FOLDER] = before


def data_of(folder: SiteFolder) -> Path:
    """Return the file of the site's rows."""
    return folder.path.parent / "north.jsonl"


@contextmanager
def started(
    folder: SiteFolder,
    arguments: Sequence[str],
    wanted: isolation.Isolation,
    *,
    readable: Sequence[Path] = (),
    leaked: Sequence[int] = (),
) -> Iterator[subprocess.Popen[str]]:
    """Start the program in the trainer's place, as a supervisor starts the trainer."""
    isolation.give_folder(folder, USER if wanted == "required" else os.geteuid())
    folder.trainer_socket.unlink(missing_ok=True)
    program = Path(hostile_program.__file__)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder.trainer_socket))
        listener.listen()
        command = isolation.command(
            [sys.executable, "-P", str(program), *arguments],
            folder=folder,
            user=USER,
            readable=[data_of(folder), program, *readable],
            isolation=wanted,
            listener=listener.fileno(),
        )
        process = subprocess.Popen(
            command,
            pass_fds=(listener.fileno(), *leaked),
            stdout=subprocess.PIPE,
            text=True,
        )
        with process:
            try:
                yield process
            finally:
                process.kill()


def baits(folder: SiteFolder, stack: ExitStack) -> tuple[dict[str, object], int]:
    """Lay out what the program is to reach, and return where it is; and a descriptor to inherit."""
    tcp, udp = socket.create_server(("127.0.0.1", 0)), socket.socket(type=socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", 0))
    abstract, named = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    name = f"fedlora-{os.getpid()}"
    abstract.bind(f"\0{name}")
    path = Path(tempfile.gettempdir()) / f"{name}.sock"
    named.bind(str(path))
    stack.callback(path.unlink)
    for each in (abstract, named):
        each.listen()
    for each in (tcp, udp, abstract, named):
        stack.enter_context(each)
    files = [tempfile.NamedTemporaryFile(dir=where) for where in _SHARED]  # noqa: SIM115 - below
    tmp, dev_shm = (stack.enter_context(file).name for file in files)
    key = stack.enter_context(folder.node_key.open("rb"))
    memory = _LIBC.shmget(os.getpid(), mmap.PAGESIZE, _IPC_CREAT | 0o666)
    stack.callback(_LIBC.shmctl, memory, _IPC_RMID, None)
    ledger = folder.gate / SITE / "ledger.sqlite"
    return {
        "tcp": tcp.getsockname()[1],
        "udp": udp.getsockname()[1],
        "abstract": name,
        "unix": str(path),
        "trainer": str(folder.trainer_socket),
        "tmp": tmp,
        "dev_shm": dev_shm,
        "shm": os.getpid(),
        "descriptor": key.fileno(),
        "pid": os.getpid(),
        "address": ctypes.addressof(_BAIT),
        "folder": str(folder.path),
        "key": str(folder.node_key),
        "ledger": str(ledger),
        "policy": str(folder.configuration),
        "data": str(data_of(folder)),
    }, key.fileno()
