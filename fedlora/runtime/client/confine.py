"""Starts a program where it can reach nothing but what it needs: run as a script, by its path.

It needs the standard library alone, for what it does first it does as root. ``isolation.command``
says how it is called. The program sees a file system that is made for it: the system's programs and
libraries, Python, fedlora, the site's data and base model, all read-only, a folder of its own, and
empty ``/tmp``, ``/run`` and ``/dev/shm``. It has a network without interfaces, sees no process but
its own, has no capability and can get none, can open no socket but a Unix one, and dies with the
process that started it. The graphics cards stay visible.
"""

import ctypes
import glob
import json
import os
import platform
import resource
import signal
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix")
_CONFIGURATION = (
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/alternatives",
    "/etc/localtime",
)
_DEVICES = ("null", "zero", "full", "random", "urandom", "nvidia*", "kfd", "dri")
_EMPTY = ("/tmp", "/run", "/var/tmp", "/dev/shm")  # noqa: S108 - made anew, and the program's own

_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_READABLE = _MS_RDONLY | _MS_NOSUID | _MS_NODEV
_MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 32, 4096, 16384, 1 << 18
_MNT_DETACH = 2
_CLONE_NEWNS, _CLONE_NEWUTS, _CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
_CLONE_NEWPID, _CLONE_NEWNET = 0x20000000, 0x40000000
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 22, 24, 38

_LIBC = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Start the program of the command line as its first argument says."""
    wanted: dict[str, Any] = json.loads(sys.argv[1])
    os.dup2(wanted["listener"], 3)
    os.closerange(4, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    if not wanted["isolated"]:
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
        _execute(wanted, sys.argv[2:])
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    _unshare(_CLONE_NEWPID)
    child = os.fork()
    if child:
        sys.exit(_watched(child))
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # also while the rest is made ready
    os.setsid()
    _unshare(_CLONE_NEWNS | _CLONE_NEWNET | _CLONE_NEWIPC | _CLONE_NEWUTS)
    _enter_new_root(wanted)
    _drop_rights(wanted["user"])
    _execute(wanted, sys.argv[2:])


def _watched(child: int) -> int:
    """Wait for the program's end and return its exit code; end it when asked to end."""
    os.close(3)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os.kill(child, signal.SIGKILL))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code if code >= 0 else 128 - code


def _execute(wanted: dict[str, Any], program: list[str]) -> None:
    """Become the program, as its descriptors and environment say: descriptor 3 is for it."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.umask(0o077)
    os.chdir(wanted["own"])
    listening = {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
    os.execve(program[0], program, wanted["environment"] | listening)  # noqa: S606 - no shell


def _enter_new_root(wanted: dict[str, Any]) -> None:
    """Leave the host's file system for one with nothing in it but what the program needs."""
    _mount(None, "/", flags=_MS_REC | _MS_PRIVATE)
    _mount_tmpfs("/tmp", mode=755)  # noqa: S108 - in this namespace alone
    for name in ("old", "new"):
        os.mkdir(f"/tmp/{name}", 0o755)  # noqa: S108 - likewise
    _call(_LIBC.pivot_root, b"/tmp", b"/tmp/old")
    os.chdir("/")
    _mount_tmpfs("/new", mode=755)
    for path in ("/dev", *_EMPTY):
        os.makedirs(f"/new{path}", exist_ok=True)
        _mount_tmpfs(f"/new{path}", mode=755 if path == "/dev" else 1777)
    devices = [found for name in _DEVICES for found in glob.glob(f"/old/dev/{name}")]
    for device in devices:
        _show(device.removeprefix("/old"), flags=_MS_NOSUID)
    for path, kind in (("/new/proc", "proc"), ("/new/sys", "sysfs")):
        os.mkdir(path, 0o755)
        _mount(kind, path, flags=_MS_NOSUID | _MS_NODEV | _MS_NOEXEC, kind=kind)
    for path in (*_SYSTEM, *_CONFIGURATION):
        _show(path)
    for path, real in wanted["programs"]:
        _show(path, real=real)
    if os.path.isdir(f"/new{wanted['folder']}"):
        _mount_tmpfs(f"/new{wanted['folder']}", mode=755)
    for path, real in wanted["readable"]:
        _show(path, real=real)
    _show(wanted["own"], flags=_MS_NOSUID | _MS_NODEV)
    os.chdir("/new")
    _call(_LIBC.pivot_root, b".", b".")
    _call(_LIBC.umount2, b".", _MNT_DETACH)
    _mount(None, "/", flags=_MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID)


def _show(path: str, *, real: str | None = None, flags: int = _READABLE) -> None:
    """Let the program see a file or folder of the host's; one that is not there, nowhere.

    Args:
        path: where it is to be seen.
        real: where it is, without links; if nothing else, there too. A link such as ``/bin`` is
            then shown as a link.
        flags: of the mount.
    """
    source, target = f"/old{real or path}", f"/new{path}"
    if not os.path.lexists(source):
        return
    os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
    if os.path.islink(source):
        os.symlink(os.readlink(source), target)
        return
    if os.path.isdir(source):
        os.makedirs(target, mode=0o755, exist_ok=True)
    elif not os.path.exists(target):
        Path(target).touch()
    _mount(source, target, flags=_MS_BIND)
    _mount(None, target, flags=_MS_REMOUNT | _MS_BIND | flags)


def _drop_rights(user: int) -> None:
    """Become a user without rights, for good."""
    for capability in range(int(Path("/proc/sys/kernel/cap_last_cap").read_text()) + 1):
        _prctl(_PR_CAPBSET_DROP, capability)
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)  # also gives up all capabilities
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _allow_unix_sockets_alone()


def _allow_unix_sockets_alone() -> None:
    """Refuse other sockets, and what could make them or share keys: io_uring and key rings.

    Not all families know network namespaces: one of AF_VSOCK would reach a virtual machine's host.
    """
    architectures = {  # AUDIT_ARCH; the calls socket, and add_key, request_key, keyctl
        "x86_64": (0xC000003E, 41, (248, 249, 250)),
        "aarch64": (0xC00000B7, 198, (217, 218, 219)),
    }
    if platform.machine() not in architectures:
        sys.exit(f"The trainer's isolation does not know the processor {platform.machine()}.")
    architecture, socket, keys = architectures[platform.machine()]
    refused = (425, *keys)  # io_uring_setup has one number everywhere
    load, equal, least, answer = 0x20, 0x15, 0x35, 0x06
    allow, refuse = 0x7FFF0000, 0x00050000 | 97  # EAFNOSUPPORT
    ahead = len(refused)
    program = [
        (load, 0, 0, 4),  # the architecture
        (equal, 0, ahead + 5, architecture),
        (load, 0, 0, 0),  # the call's number
        (least, ahead + 3, 0, 0x40000000),  # x32
        *((equal, ahead + 2 - index, 0, number) for index, number in enumerate(refused)),
        (equal, 0, 3, socket),
        (load, 0, 0, 16),  # its first argument, the family
        (equal, 1, 0, 1),  # AF_UNIX
        (answer, 0, 0, refuse),
        (answer, 0, 0, allow),
    ]
    code = b"".join(struct.pack("HBBI", *each) for each in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    pointed = struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer))
    filters = ctypes.create_string_buffer(pointed, len(pointed))
    _prctl(_PR_SET_SECCOMP, 2, ctypes.addressof(filters))


def _mount_tmpfs(target: str, *, mode: int) -> None:
    _call(_LIBC.mount, b"tmpfs", target.encode(), b"tmpfs", _MS_NOSUID, f"mode={mode}".encode())


def _mount(source: str | None, target: str, *, flags: int, kind: str | None = None) -> None:
    texts = [text and text.encode() for text in (source, target, kind)]
    _call(_LIBC.mount, *texts, ctypes.c_ulong(flags), None)


def _unshare(flags: int) -> None:
    _call(_LIBC.unshare, flags)


def _prctl(option: int, *values: int) -> None:
    numbers = (*values, 0, 0, 0, 0)[:4]
    _call(_LIBC.prctl, option, *map(ctypes.c_ulong, numbers))


def _call(function: Callable[..., int], *arguments: Any) -> None:  # noqa: ANN401 - of C's functions
    if function(*arguments):
        number = ctypes.get_errno()
        name = getattr(function, "__name__", "a call")
        sys.exit(
            f"The trainer cannot be isolated: {name}{arguments!r}: {os.strerror(number)}. Start it "
            "as root; in a container this takes the capability SYS_ADMIN and a seccomp profile "
            "that allows mount and unshare."
        )


if __name__ == "__main__":
    main()
