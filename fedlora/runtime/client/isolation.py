"""How the trainer is kept from everything but its work, and what shows the gate that it is.

What is promised of a trainer that is isolated, whatever it is made to do: it reaches no network and
no other process, sees none of the site's keys, ledger, evidence or configuration, and shares no
folder with anyone. All that leaves it goes through one Unix socket, to the gate. Data and base
model can be read, and nothing but its own folder written.

Limits: it hears what the gate sends and measures time; the hardware is shared, its caches and the
graphics card's too; the kernel is trusted. Its report is its own word, but it gives it before it
has read anything that could turn it, and no process gets rights back that it gave up.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import fedlora
from fedlora.errors import RunError
from fedlora.runtime.client import confine
from fedlora.runtime.client.folder import SiteFolder
from fedlora.runtime.client.probes import Place, Probe, Report

Isolation = Literal["required", "none"]
"""``none`` is the operator's explicit word that the trainer may reach what its user may."""

_KEPT = ("LANG", "LC_ALL", "PATH", "TZ")
_KEPT_BEGINNINGS = ("CUDA_", "GOMP_", "HIP_", "MKL_", "NVIDIA_", "OMP_", "PYTORCH_", "THP_")


def command(
    program: Sequence[str],
    *,
    folder: SiteFolder,
    user: int,
    readable: Sequence[Path],
    isolation: Isolation,
    listener: int,
    environment: Mapping[str, str] = os.environ,
) -> list[str]:
    """Return the command that starts a program as the trainer is to run.

    The program gets the listening socket as descriptor 3, with ``LISTEN_FDS`` and ``LISTEN_PID`` as
    by systemd, and no other above 2. It is killed when the thread that started it ends, so start it
    from one that stays, and by SIGTERM.

    Args:
        program: what to start, with its arguments; the first is an absolute path.
        folder: the site's; the program may write its ``trainer``, which must be the user's.
        user: number of the user, and of the group, that it runs as: nobody else's.
        readable: data and base model, which that user must be allowed to read.
        isolation: with ``none`` it runs as who starts it, with a clean environment and no more.
        listener: number of a listening Unix socket, which is passed on (``pass_fds``).
        environment: what it takes some variables from: language, time zone, threads, graphics card.

    Raises:
        RunError: this process cannot isolate another; or ``user`` is not of the trainer alone, or
            ``readable`` would show what is to be hidden.
    """
    isolated = isolation == "required"
    if isolated:
        _require_possible(folder, user, readable)
    wanted = {
        "isolated": isolated,
        "listener": listener,
        "user": user,
        "folder": str(folder.path.resolve()),
        "own": str(folder.trainer.resolve()),
        "programs": [_place(path) for path in (sys.prefix, sys.base_prefix, _package())],
        "readable": [_place(path) for path in readable],
        "environment": _environment(folder, environment),
    }
    return [sys.executable, "-I", str(Path(confine.__file__)), json.dumps(wanted), *program]


def trainer(folder: SiteFolder) -> list[str]:
    """Return the program that is the trainer."""
    return [
        sys.executable,
        "-P",
        "-m",
        "fedlora.runtime.client.trainer",
        str(folder.path.resolve()),
    ]


def give_folder(folder: SiteFolder, user: int) -> None:
    """Make the trainer's folder and give it, with what is in it, to its user; no trainer may run.

    Raises:
        RunError: it cannot be.
    """
    try:
        folder.trainer.mkdir(mode=0o700, parents=True, exist_ok=True)
        for _, folders, files, here in os.fwalk(folder.trainer):  # follows no links
            os.fchown(here, user, user)
            for name in (*folders, *files):
                os.chown(name, user, user, dir_fd=here, follow_symlinks=False)
    except OSError as error:
        raise RunError(
            f"{folder.trainer}: cannot be given to the trainer's user {user} ({error.strerror}). "
            "Start as root."
        ) from None


def compared(report: Report, *, gate: Place, user: int) -> Report:
    """Return the report with what gate and trainer see only together.

    Args:
        report: the trainer's.
        gate: where the gate is.
        user: whom the gate runs as.
    """
    theirs = report.place
    probes = [
        _probe("own user", "" if report.user not in {0, user} else f"it runs as user {report.user}")
    ]
    for name, number in gate.namespaces.items():
        shared = theirs.namespaces.get(name, number) == number
        probes.append(_probe(f"own {name} namespace", "shared with the gate" if shared else ""))
    for path, identity in gate.folders.items():
        shared = theirs.folders.get(path) == identity
        probes.append(_probe(f"own {path}", "shared with the gate" if shared else ""))
    return report.model_copy(update={"probes": (*report.probes, *probes)})


def require(report: Report, isolation: Isolation) -> None:
    """Do nothing if the trainer is as isolated as the operator wants it.

    Args:
        report: as ``compared`` returns it.
        isolation: from site.yaml.

    Raises:
        RunError: it is not; names each probe that failed.
    """
    failed = [f"{probe.name} ({probe.found})" for probe in report.probes if not probe.passed]
    if isolation == "required" and failed:
        raise RunError(
            f"The trainer is not isolated: {'; '.join(failed)}. Start the client as root or by its "
            "systemd unit; in a container it takes the capability SYS_ADMIN and a seccomp profile "
            "that allows mount and unshare. To train without, write trainer: {isolation: none} "
            "into site.yaml: it is put on record."
        )


def _require_possible(folder: SiteFolder, user: int, readable: Sequence[Path]) -> None:
    if os.geteuid() != 0:
        raise RunError(
            "trainer.isolation: only root can give the trainer a user, a network and a file system "
            "of its own. Start the client as root (it gives its rights up at once) or by its "
            "systemd unit, or write trainer: {isolation: none} into site.yaml: it is put on record."
        )
    if user in {0, folder.path.stat().st_uid}:
        raise RunError(
            f"trainer.user: a user of the trainer's own was expected, but {user} is root or the "
            f"owner of {folder.path}."
        )
    hidden = [folder.credentials.resolve(), folder.gate.resolve()]
    for path in readable:
        if not path.exists():
            raise RunError(f"{path}: the trainer is to read it, but it is not there.")
        real = path.resolve()
        if any(real == each or real in each.parents or each in real.parents for each in hidden):
            raise RunError(
                f"{path}: the trainer is to read it, but keys or the ledger of {folder.path} lie "
                "in it. Keep data and base model apart from them."
            )


def _environment(folder: SiteFolder, environment: Mapping[str, str]) -> dict[str, str]:
    """Return all of the program's environment."""
    own, home = str(folder.trainer.resolve()), Path.home() / ".cache" / "huggingface"
    kept = {
        name: value
        for name, value in environment.items()
        if name in _KEPT or name.startswith(_KEPT_BEGINNINGS)
    }
    return kept | {
        "HOME": own,
        "FEDLORA_SITES": own,
        "HF_HOME": environment.get("HF_HOME", str(home)),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(_package().parent),
        "PYTHONUNBUFFERED": "1",
        "USER": "trainer",
    }


def _place(path: Path | str) -> tuple[str, str]:
    """Return where a path is seen, and where it is without links."""
    return str(Path(path).absolute()), str(Path(path).resolve())


def _package() -> Path:
    """Return the folder of this very fedlora, which the trainer is to use too."""
    return Path(fedlora.__file__).resolve().parent


def _probe(name: str, found: str) -> Probe:
    return Probe(name=name, passed=not found, found=found)
