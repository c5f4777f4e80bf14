"""A deployment that faults can be done to: each host's disk is small, each site's line is ours."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from fedlora.document import write_yaml
from fedlora.recipe import Recipe
from fedlora.runtime.client.folder import SiteFolder
from fedlora.runtime.enrolment import JoinBundle
from fedlora.runtime.run_folder import RunFolder
from fedlora.runtime.server.configuration import Configuration
from simulations.faults.line import Line
from simulations.faults.one_hot import POLICY
from simulations.faults.site import make_clock
from simulations.loopback import Loopback

_DISK = "64m"
_FILLER = "filler"
_CLIENT = ("simulations.faults.site",)


class Scene:
    """The deployment, the runs that keep it busy, and what can be done to it.

    Args:
        folder: an empty one.
        recipe: one-hot.
        queue: runs that wait behind the one that is played, so that it never idles.
    """

    def __init__(self, folder: Path, recipe: Recipe, *, queue: int = 1) -> None:
        self.deployment = Loopback(
            folder, recipe, policy=POLICY, client=_CLIENT, prepare=self._prepare
        )
        self.server = self.deployment.server.path
        self.sites = {name: site.path for name, site in self.deployment.sites.items()}
        self.lines: dict[str, Line] = {}
        self.runs: list[RunFolder] = []
        self.small_disks = self.clocks = True
        self._queue = queue
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._stack = stack  # for what ``_prepare`` opens; it is closed after the deployment
            stack.enter_context(self.deployment)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for line in self.lines.values():
            line.become("whole")
        self._stack.__exit__(kind, error, trace)

    def rounds(self) -> int:
        """Return how many rounds are complete, of all runs; begin another run when few wait."""
        unfinished = [run for run in self.runs if not run.is_published]
        if len(unfinished) <= self._queue:
            self.runs.append(self.deployment.runs.begin(self.deployment.recipe))
        return sum(len(run.records()) for run in self.runs)

    def kill(self, folder: Path, service: str) -> None:
        """Kill a service with SIGKILL, as soon as there is one."""
        self.deployment.wait(lambda: self.deployment.signal(folder, service))

    @contextmanager
    def suspended(self, folder: Path, service: str) -> Iterator[None]:
        """Suspend a service while the block runs, or until its supervisor has had enough."""
        self.deployment.wait(lambda: self.deployment.signal(folder, service, signal.SIGSTOP))
        process = self.deployment.process(folder, service)
        try:
            yield
        finally:
            if process and process.alive:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGCONT)

    @contextmanager
    def host_suspended(self, folder: Path) -> Iterator[None]:
        """Suspend a supervisor and all of its processes while the block runs."""
        pids = self._family(folder)
        for pid in pids:
            _send(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in reversed(pids):
                _send(pid, signal.SIGCONT)

    def kill_supervisor(self, folder: Path) -> None:
        """Kill the supervisor of a folder, and start it again as an operator would."""
        supervisor = self.deployment.supervisor(folder)
        supervisor.kill()
        supervisor.wait()
        self.start(folder)

    def kill_host(self, folder: Path, *, pause: float) -> None:
        """Kill all processes of a folder at once, as a power failure does; start it after a while.

        Args:
            folder: of the aggregator, or of a site.
            pause: seconds.
        """
        supervisor = self.deployment.supervisor(folder)
        for pid in self._family(folder):
            _send(pid, signal.SIGKILL)
        supervisor.wait()
        time.sleep(pause)
        self.start(folder)

    def start(self, folder: Path) -> None:
        """Run the one command that an operator runs."""
        if folder == self.server:
            self.deployment.start_server()
        else:
            self.deployment.start_site(folder.name)

    @contextmanager
    def disk_full(self, folder: Path) -> Iterator[None]:
        """Leave not a byte on the disk of a folder while the block runs."""
        filler = folder / _FILLER
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))
        try:
            yield
        finally:
            filler.unlink()

    def _family(self, folder: Path) -> list[int]:
        """Return a supervisor and all that descend from it, it first."""
        children: dict[int, list[int]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with suppress(OSError):
                    parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                    children.setdefault(parent, []).append(int(entry.name))
        family = [self.deployment.supervisor(folder).pid]
        for pid in family:
            family += children.get(pid, [])
        return family

    def _prepare(self, folder: Path) -> None:
        self._give_small_disk(folder)
        if folder == self.server:
            return
        self.clocks = make_clock(folder)
        line = Line(Configuration.read(self.deployment.server.configuration).address)
        self.lines[folder.name] = self._stack.enter_context(line)
        join = SiteFolder(folder).join
        bundle = JoinBundle.read(join).model_copy(update={"aggregator": line.address})
        join.write_text(write_yaml(bundle.model_dump(exclude_none=True)), encoding="utf-8")

    def _give_small_disk(self, folder: Path) -> None:
        """Move a folder to a small disk of its own, if this user may mount one."""
        aside, owner = folder.with_name(f".{folder.name}"), folder.stat()
        folder.rename(aside)
        folder.mkdir(mode=owner.st_mode)
        options = f"size={_DISK},mode={owner.st_mode & 0o7777:o}"
        mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        mounted = subprocess.run(mount, check=False, capture_output=True).returncode == 0
        if mounted:
            self._stack.callback(subprocess.run, ["umount", "-l", str(folder)], check=False)
        self.small_disks &= mounted
        shutil.copytree(aside, folder, dirs_exist_ok=True, symlinks=True)
        shutil.rmtree(aside)


def _send(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
