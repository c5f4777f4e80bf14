"""What a trainer must not be able to do, tried by itself before it reads anything.

It does not matter who isolates it: ``isolation.command``, a systemd unit, or a container of its
own. What only trainer and gate together can see, each says of itself here and the gate compares.
"""

import ctypes
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

_HERE = Path("/proc/self")
_NAMESPACES = ("ipc", "mnt", "net", "pid")
_SHARED = ("/dev/shm", "/run", "/tmp", "/var/tmp")  # noqa: S108 - where strangers meet
_OUTSIDE = (
    (socket.AF_INET, ("192.0.2.1", 9)),  # RFC 5737 and 3849: for documentation, so nobody's
    (socket.AF_INET6, ("2001:db8::1", 9)),
)
_HIDDEN = ("credentials", "gate", "logs", "run", "site.yaml")
_HOST_OF_MACHINE = (2, 9)
"""CID and port of a virtual machine's host, by AF_VSOCK."""
_PEER = struct.Struct("3i")
_PTRACE_SEIZE = 0x4206
_LIBC = ctypes.CDLL(None, use_errno=True)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Probe(_Strict):
    """One thing that was tried."""

    name: str = Field(max_length=40)
    passed: bool
    """Whether it was impossible, as it should be."""
    found: str = Field(max_length=200)


class Place(_Strict):
    """Where a process is: equal for two processes where they share something."""

    namespaces: dict[str, int] = Field(max_length=len(_NAMESPACES))
    folders: dict[str, tuple[int, int]] = Field(max_length=len(_SHARED))
    """Device and inode of the folders that all programs of a host share."""

    @classmethod
    def here(cls) -> "Place":
        """Return the place of this process."""
        return cls(
            namespaces={name: os.stat(f"/proc/self/ns/{name}").st_ino for name in _NAMESPACES},
            folders={path: _identity(path) for path in _SHARED if os.path.isdir(path)},
        )


class Report(_Strict):
    """How isolated a trainer found itself."""

    user: int
    place: Place
    probes: tuple[Probe, ...] = Field(max_length=40)


def report(folder: Path) -> Report:
    """Try all that must not work, and say what came of it.

    Nothing is harmed where it does work: no byte is written, and no signal but 0 is sent.

    Args:
        folder: the site's.
    """
    probes: tuple[tuple[str, Callable[[], str]], ...] = (
        ("network", _network),
        ("TCP", _tcp),
        ("DNS", _dns),
        ("AF_VSOCK", _vsock),
        ("abstract Unix sockets", _abstract_sockets),
        ("processes", _processes),
        ("signals", _signals),
        ("ptrace", _ptrace),
        ("descriptors", _descriptors),
        ("rights", _rights),
        *((f"site's {name}", lambda name=name: _hidden(folder / name)) for name in _HIDDEN),
    )
    return Report(user=os.geteuid(), place=Place.here(), probes=tuple(_tried(*p) for p in probes))


def user_of_peer(connection: socket.socket) -> int:
    """Return the user who is at the other end of a Unix socket."""
    packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    return int(_PEER.unpack(packed)[1])


def _tried(name: str, probe: Callable[[], str]) -> Probe:
    """Return what a probe found; nothing is what it should find."""
    try:
        found = probe()
    except OSError as error:  # refused in a way that the probe does not know: no proof
        found = f"cannot be tried: {error}"
    return Probe(name=name, passed=not found, found=found[:200])


def _network() -> str:
    """Find interfaces besides the loopback's."""
    lines = (_HERE / "net" / "dev").read_text().splitlines()[2:]
    names = [line.partition(":")[0].strip() for line in lines]
    return ", ".join(name for name in names if name != "lo")


def _tcp() -> str:
    """Find a way out: a route is enough."""
    return "; ".join(
        f"{address[0]} can be reached" for family, address in _OUTSIDE if _routed(family, address)
    )


def _routed(family: int, address: tuple[str | int, int]) -> bool:
    """Return whether a connection is under way, answered or refused, rather than impossible."""
    with suppress(OSError), socket.socket(family, socket.SOCK_STREAM) as connection:
        connection.settimeout(0)
        with suppress(BlockingIOError, ConnectionRefusedError, TimeoutError):
            connection.connect(address)
        return True
    return False


def _dns() -> str:
    """Find a resolver: on the network, or behind a socket that the system's library knows."""
    sockets = ("/run/nscd/socket", "/run/systemd/resolve/io.systemd.Resolve")
    if there := [path for path in sockets if os.path.exists(path)]:
        return f"{there[0]} is there"
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.connect(_OUTSIDE[0][1])  # sends nothing, but fails without a route
        return "questions would leave"
    return ""


def _vsock() -> str:
    """Find the host of a virtual machine, which network namespaces do not hide."""
    return "a virtual machine's host answers" if _routed(socket.AF_VSOCK, _HOST_OF_MACHINE) else ""


def _abstract_sockets() -> str:
    names = [line.split()[-1] for line in (_HERE / "net" / "unix").read_text().splitlines()]
    return ", ".join(name for name in names if name.startswith("@"))


def _processes() -> str:
    if others := list(_others()):
        return f"{len(others)} other processes are seen, such as {others[0]}"
    return ""


def _others() -> Iterator[int]:
    """Yield the processes that are seen, but for this one."""
    numbers = (int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal())
    return (number for number in numbers if number != os.getpid())


def _signals() -> str:
    try:
        os.kill(-1, 0)  # to all others at once; 0 is only asked for
    except OSError:
        return ""
    return "other processes can be signalled"


def _ptrace() -> str:
    """Find another process whose memory could be read, or which could be held up."""
    for number in _others():
        with suppress(OSError), open(f"/proc/{number}/mem", "rb"):
            return f"the memory of {number} can be opened"
    return ""


def _descriptors() -> str:
    opened = {int(name): path for name, path in _descriptors_of_here()}
    return ", ".join(f"{number} is {path}" for number, path in opened.items() if number > 3)


def _descriptors_of_here() -> Iterator[tuple[str, str]]:
    for name in os.listdir(_HERE / "fd"):
        with suppress(OSError):  # the listing's own has gone
            yield name, os.readlink(_HERE / "fd" / name)


def _rights() -> str:
    """Find capabilities, groups, the superuser, or a way to become one."""
    lines = (_HERE / "status").read_text().splitlines()
    status = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    found = [
        f"{name} {status[name]}"
        for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")
        if int(status[name], 16)
    ]
    if status["NoNewPrivs"] != "1":
        found.append("programs that raise rights do")
    if others := {*status["Uid"].split(), *status["Gid"].split()} & {"0"}:
        found.append(f"user or group {others.pop()}")
    if groups := set(os.getgroups()) - {os.getgid()}:
        found.append(f"group {groups.pop()}")
    return ", ".join(found)


def _hidden(path: Path) -> str:
    """Find a file or folder of the site's that is not the trainer's business."""
    with suppress(OSError):
        os.close(os.open(path, os.O_RDONLY))
        return f"{path} can be opened"
    return ""


def _identity(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino
