"""A real deployment on this machine: an aggregator and its sites, each in a folder of its own.

Every process is the one that operators start; they speak TLS over loopback.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

from fedlora.document import write_yaml
from fedlora.recipe import Recipe
from fedlora.runtime.client.enrol import enrol
from fedlora.runtime.client.folder import SiteFolder
from fedlora.runtime.client.peers import own, read_peers, write_peers
from fedlora.runtime.lock import locked
from fedlora.runtime.processes import launcher
from fedlora.runtime.processes.service_state import Process, Supervision
from fedlora.runtime.processes.supervisor import services_file
from fedlora.runtime.run_folder import RunFolder
from fedlora.runtime.server import admission
from fedlora.runtime.server.configuration import Configuration
from fedlora.runtime.server.control import Control
from fedlora.runtime.server.folder import ServerFolder
from fedlora.runtime.server.installation import install
from fedlora.runtime.server.runs import Runs, Standing
from fedlora.training.base_model import describe

DIES_WITH_US = (sys.executable, "-I", "-S", launcher.__file__)
"""What a command is put behind, with this process's id and two dashes, to end with it."""
_POLL = 0.2
_PATIENCE = 180.0
"""Seconds for what should take a few."""


class Loopback:
    """A deployment that lives as long as the block.

    Args:
        folder: an empty one.
        recipe: names its sites; each trains on what the recipe says, by its own ``site.yaml``.
        isolation: of the trainers; ``required`` needs root.
        policy: what differs from a policy that allows the recipe by its digest, without a person.
        client: what is run with a site's folder to start it.
        prepare: is given each folder before its processes start for the first time.
    """

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        *,
        isolation: str = "none",
        policy: Mapping[str, Any] | None = None,
        client: Sequence[str] = ("fedlora", "client", "start", "--dir"),
        prepare: Callable[[Path], None] = lambda _: None,
    ) -> None:
        self.folder = folder
        self.recipe = recipe if recipe.lock else _locked(recipe)
        self.server = ServerFolder(folder / "aggregator")
        self.sites = {name: SiteFolder(folder / name) for name in recipe.site_names}
        self.runs = Runs(self.server.runs)
        self._isolation, self._policy = isolation, policy or {}
        self._client, self._prepare = client, prepare
        self._stack = ExitStack()
        self._supervisors: dict[Path, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.callback(self._stop)
            self._begin()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, *, timeout: float = _PATIENCE) -> RunFolder:
        """Play the recipe; return the finished run."""
        run = self.runs.begin(self.recipe)
        self.finish(run, timeout=timeout)
        return run

    def finish(self, run: RunFolder, *, timeout: float = _PATIENCE) -> None:
        """Wait for a run's end.

        Raises:
            TimeoutError: it has not come.
        """
        self.wait(lambda: self.runs.standing(run).state == "finished", timeout=timeout)

    def standing(self, run: RunFolder) -> Standing:
        """Return where a run stands."""
        return self.runs.standing(run)

    def start_server(self) -> None:
        """Start the aggregator as its operator does."""
        folder = self.server.path
        self._start(folder, ["fedlora", "server", "start", "--dir", str(folder)])

    def start_site(self, name: str) -> None:
        """Start a site as its operator does."""
        folder = self.sites[name].path
        self._start(folder, [*self._client, str(folder)])

    def pin(self, name: str, peers: Iterable[str]) -> None:
        """Pin peers at a site to the keys of their gates, as operators tell them each other."""
        folder = self.sites[name]
        pinned = read_peers(folder)
        for peer in peers:
            pinned = pinned.adding(peer, own(self.sites[peer])[1].fingerprint)
        write_peers(folder, pinned)

    def supervisor(self, folder: Path) -> subprocess.Popen[bytes]:
        """Return the process that supervises a folder."""
        return self._supervisors[folder]

    def process(self, folder: Path, service: str) -> Process | None:
        """Return the process of a service, if it has one."""
        told = Supervision.read(services_file(folder))
        states = told.services if told else ()
        return next((state.process for state in states if state.name == service), None)

    def signal(self, folder: Path, service: str, number: int = signal.SIGKILL) -> bool:
        """Send a service's process a signal; return whether there was one."""
        process = self.process(folder, service)
        if process is None or not process.alive:
            return False
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)
        return True

    def wait(self, reached: Callable[[], bool], *, timeout: float = _PATIENCE) -> None:
        """Wait until something holds.

        Raises:
            TimeoutError: it does not; the message says how the processes are.
        """
        deadline = time.monotonic() + timeout
        while not reached():
            if time.monotonic() > deadline:
                raise TimeoutError(self.tails())
            time.sleep(_POLL)

    def tails(self) -> str:
        """Return the end of each process's log."""
        logs = sorted(self.folder.glob("*/logs/*.log")) + sorted(self.folder.glob("*.log"))
        ends = (
            f"── {log.relative_to(self.folder)}\n"
            + "\n".join(log.read_text(errors="replace").splitlines()[-12:])
            for log in logs
        )
        return "\n".join(ends)

    def _begin(self) -> None:
        front, superlink, metrics, registry = free_ports(4)
        configuration = Configuration(
            hosts=("127.0.0.1",),
            listen="127.0.0.1",
            port=front,
            superlink_port=superlink,
            metrics_port=metrics,
            registry_port=registry,
        )
        install(self.server.path, configuration, sites=list(self.sites))
        self._prepare(self.server.path)
        self.start_server()
        self.wait(self._answers)
        for name, folder in self.sites.items():
            self._admit(name, folder)
            self.start_site(name)

    def _answers(self) -> bool:
        """Whether SuperLink and front are there."""
        address = Configuration.read(self.server.configuration).address
        host, port = address.rsplit(":", 1)
        with suppress(Exception), Control(self.server) as control:
            control.nodes()
            socket.create_connection((host, int(port)), 1).close()
            return True
        return False

    def _admit(self, name: str, folder: SiteFolder) -> None:
        done = enrol(self.server.bundle(name), folder)
        folder.configuration.write_text(write_yaml(self.site_yaml(name)), encoding="utf-8")
        admission.admit(self.server, name, fingerprint=done.fingerprint)
        self._prepare(folder.path)

    def site_yaml(self, name: str) -> dict[str, Any]:
        """Return a site's configuration: its data of the recipe, and a policy that allows it."""
        keys = {"path", "type", "packages"}
        data = [
            d.model_dump(mode="json", include=keys) for d in self.recipe.datasets if d.site == name
        ]
        policy = {"recipes": [self.recipe.digest], "approval": "none", **self._policy}
        return {
            "site": name,
            "data": data,
            "trainer": {"isolation": self._isolation},
            "policy": policy,
        }

    def _start(self, folder: Path, arguments: Sequence[str]) -> None:
        log = (self.folder / f"{folder.name}.log").open("ab")
        with log:
            self._supervisors[folder] = subprocess.Popen(
                [*DIES_WITH_US, str(os.getpid()), "-", "-", sys.executable, "-m", *arguments],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _stop(self) -> None:
        for process in self._supervisors.values():
            process.terminate()
        for process in self._supervisors.values():
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_ports(count: int) -> list[int]:
    """Return ports of loopback that nobody listens on."""
    with ExitStack() as stack:
        servers = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)
        ]
        return [int(server.getsockname()[1]) for server in servers]


def _locked(recipe: Recipe) -> Recipe:
    base = describe(recipe)
    return locked(recipe, base.spec, base.digests)
