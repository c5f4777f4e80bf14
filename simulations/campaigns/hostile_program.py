"""What runs in the trainer's place in the campaign: it replays answers, or tries to reach out.

``replay FILE…`` sends the bytes of one file on each connection, after its hello and a question.
``reach FACTS`` tries one thing after another and says on its output what worked.
"""

import ctypes
import json
import mmap
import os
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedlora.runtime.client.frames import Channel, Hello
from fedlora.runtime.client.probes import report

_LIBC = ctypes.CDLL(None, use_errno=True)
_PTRACE_SEIZE, _CLONE_NEWNS, _CLONE_NEWUSER, _MNT_DETACH = 0x4206, 0x20000, 0x10000000, 2
_IO_URING_SETUP, _PROCESS_VM_READV = 425, {"x86_64": 310, "aarch64": 270}
_QUESTION = struct.Struct("<IQ")


def main() -> None:
    """Do as the command line says."""
    what, folder, *arguments = sys.argv[1:]
    if what == "replay":
        _replay(Path(folder), [Path(name) for name in arguments])
    else:
        facts = json.loads(arguments[0])
        for name, attempt in REACHES.items():
            print(json.dumps({"name": name} | _tried(attempt, facts)), flush=True)


def _replay(folder: Path, files: list[Path]) -> None:
    hello, listener = Hello(report=report(folder)), socket.socket(fileno=3)
    for file in files:
        connection, _ = listener.accept()
        Channel(connection).send(hello)
        header, body = _QUESTION.unpack(_read(connection, _QUESTION.size))
        _read(connection, header + body)
        try:
            connection.sendall(file.read_bytes())
            while connection.recv(2**16):  # until the gate has had enough
                pass
        except ConnectionError:
            pass
        connection.close()


def _read(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        data += connection.recv(min(2**20, size - len(data)))
    return bytes(data)


def _tried(attempt: Callable[[dict[str, Any]], object], facts: dict[str, Any]) -> dict[str, Any]:
    try:
        attempt(facts)
    except OSError as error:
        return {"blocked": True, "by": str(error)}
    return {"blocked": False, "by": ""}


def _tcp(facts: dict[str, Any]) -> None:
    socket.create_connection(("127.0.0.1", facts["tcp"]), timeout=5).close()


def _tcp_outside(_: dict[str, Any]) -> None:
    connection = socket.socket()
    connection.settimeout(0)
    try:
        connection.connect(("192.0.2.1", 443))
    except BlockingIOError:
        return  # it is on its way


def _udp(facts: dict[str, Any]) -> None:
    socket.socket(type=socket.SOCK_DGRAM).sendto(b"data", ("127.0.0.1", facts["udp"]))


def _dns(_: dict[str, Any]) -> None:
    socket.getaddrinfo("secret.example.com", 443)


def _ask_resolver(_: dict[str, Any]) -> None:
    socket.socket(type=socket.SOCK_DGRAM).sendto(b"?", ("127.0.0.53", 53))


def _abstract(facts: dict[str, Any]) -> None:
    socket.socket(socket.AF_UNIX).connect("\0" + facts["abstract"])


def _connect(path: str) -> None:
    socket.socket(socket.AF_UNIX).connect(path)


def _ptrace(facts: dict[str, Any]) -> None:
    _require(_LIBC.ptrace(_PTRACE_SEIZE, facts["pid"], None, None))


def _read_memory(facts: dict[str, Any]) -> None:
    with Path(f"/proc/{facts['pid']}/mem").open("rb", buffering=0) as memory:
        memory.seek(facts["address"])
        memory.read(1)


def _read_memory_at_once(facts: dict[str, Any]) -> None:
    into = ctypes.create_string_buffer(1)
    here = struct.pack("PN", ctypes.addressof(into), 1)
    there = struct.pack("PN", facts["address"], 1)
    number = _PROCESS_VM_READV[os.uname().machine]
    call, process, one, zero = map(ctypes.c_ulong, (number, facts["pid"], 1, 0))
    _require(_LIBC.syscall(call, process, here, one, there, one, zero))


def _become_root(_: dict[str, Any]) -> None:
    os.setuid(0)
    Path("/etc/shadow").read_bytes()


def _uncover(facts: dict[str, Any]) -> None:
    """Take off what hides the site's folder, with the rights of a user namespace of its own."""
    child = os.fork()
    if child == 0:
        if _LIBC.unshare(_CLONE_NEWUSER | _CLONE_NEWNS):
            os._exit(1)
        for path in (facts["folder"], "/run", "/tmp", "/"):  # noqa: S108 - what was mounted there
            _LIBC.umount2(path.encode(), _MNT_DETACH)
        os._exit(0 if Path(facts["key"]).exists() else 1)
    if os.waitpid(child, 0)[1]:
        raise PermissionError("nothing was under it")


def _ring(_: dict[str, Any]) -> None:
    parameters = ctypes.create_string_buffer(120)
    _require(_LIBC.syscall(_IO_URING_SETUP, 2, parameters))


def _shared_memory(facts: dict[str, Any]) -> None:
    _require(_LIBC.shmget(facts["shm"], mmap.PAGESIZE, 0))


def _open(path: str) -> None:
    os.close(os.open(path, os.O_RDONLY))


def _change(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY))


def _require(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


REACHES: dict[str, Callable[[dict[str, Any]], object]] = {
    "TCP to the host": _tcp,
    "TCP to the outside": _tcp_outside,
    "UDP to the host": _udp,
    "DNS by the system's library": _dns,
    "DNS by a packet of its own": _ask_resolver,
    "raw packets": lambda _: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close(),
    "the virtual machine's host": lambda _: socket.socket(socket.AF_VSOCK).close(),
    "the kernel's netlink": lambda _: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close(),
    "io_uring, which makes sockets": _ring,
    "an abstract Unix socket": _abstract,
    "a Unix socket in /tmp": lambda facts: _connect(facts["unix"]),
    "the trainer's own socket, as the gate": lambda facts: _connect(facts["trainer"]),
    "a file in the shared /tmp": lambda facts: _change(facts["tmp"]),
    "a file in the shared /dev/shm": lambda facts: _change(facts["dev_shm"]),
    "System V shared memory": _shared_memory,
    "an inherited descriptor": lambda facts: os.read(facts["descriptor"], 1),
    "ptrace of the gate": _ptrace,
    "/proc/PID/mem of the gate": _read_memory,
    "process_vm_readv of the gate": _read_memory_at_once,
    "/proc/PID/root of the gate": lambda facts: _open(f"/proc/{facts['pid']}/root"),
    "a signal to the gate": lambda facts: os.kill(facts["pid"], 0),
    "a signal to all": lambda _: os.kill(-1, 0),
    "the site's keys": lambda facts: _open(facts["key"]),
    "the ledger": lambda facts: _open(facts["ledger"]),
    "the policy": lambda facts: _open(facts["policy"]),
    "writing the ledger": lambda facts: _change(facts["ledger"]),
    "writing the site's data": lambda facts: _change(facts["data"]),
    "writing fedlora's code": lambda _: _change(report.__code__.co_filename),
    "becoming root": _become_root,
    "uncovering the folder in a user namespace": _uncover,
}

if __name__ == "__main__":
    main()
