"""Flower as it comes, on this machine: SuperLink, SuperNodes, executors and FedAvg, all stock.

As in our deployment there are TLS, node authentication, a database, and a SuperLink in process
isolation. Its executor is Flower's, and its SuperNodes start a process for each message, as they do
unless told otherwise.
"""

import os
import signal
import subprocess
import sysconfig
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Self

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.cli.build import build_fab_from_files

from fedlora.errors import RunError
from fedlora.runtime.server.configuration import Configuration
from fedlora.runtime.server.control import Control
from fedlora.runtime.server.installation import install
from fedlora.runtime.server.superlink import superlink_command
from simulations.benchmarks import stock_app
from simulations.loopback import free_ports

_START, _RUN = 60.0, 600.0
"""Seconds for what should take a few, and for a run."""
_PROJECT = """\
[project]
name = "stock"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "stock"
fab-include = ["*.py"]

[tool.flwr.app.components]
serverapp = "stock_app:server"
clientapp = "stock_app:client"

[tool.flwr.app.config]
sites = 0
rounds = 0
size = 0
base-model = ""
rounds-file = ""
processes-file = ""
"""


@dataclass(frozen=True, kw_only=True)
class Played:
    """What a run of the stock app took."""

    seconds: Sequence[float]
    """Of each round."""
    processes: Sequence[int]
    """Number of the process that answered, for each message."""


class StockFlower:
    """A stock deployment that lives as long as the block.

    Args:
        folder: an empty one.
        sites: how many SuperNodes.
    """

    def __init__(self, folder: Path, *, sites: int) -> None:
        self._folder, self._sites = folder, sites
        self._runs = 0
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        try:
            self._begin()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def play(self, *, rounds: int, size: int, base_model: str = "") -> Played:
        """Run the stock app.

        Args:
            rounds: how many; the sites train and evaluate in each.
            size: values of the adapter, in float32, both ways.
            base_model: a folder with what each process is to load, if anything.

        Raises:
            TimeoutError: it does not end.
            RunError: SuperLink refuses, or the run fails.
        """
        self._runs += 1
        ends = self._folder / f"rounds-{self._runs}"
        processes = self._folder / f"processes-{self._runs}"
        config: dict[str, str | int | float | bool] = {
            "sites": self._sites,
            "rounds": rounds,
            "size": size,
            "base-model": base_model,
            "rounds-file": str(ends),
            "processes-file": str(processes),
        }
        with Control(self._server) as control:
            run = control.start_run(_bundle(), config=config)
            _wait(lambda: control.runs()[run].startswith("finished"), timeout=_RUN)
            if control.runs()[run] != "finished:completed":
                raise RunError(f"The stock run is {control.runs()[run]}; see {self._folder}.")
        times = [float(line) for line in ends.read_text().split()]
        return Played(
            seconds=[after - before for before, after in pairwise(times)],
            processes=[int(float(line)) for line in processes.read_text().split()],
        )

    def _begin(self) -> None:
        front, superlink, metrics, *runtime = free_ports(3 + self._sites)
        configuration = Configuration(
            hosts=("127.0.0.1",),
            listen="127.0.0.1",
            port=front,
            superlink_port=superlink,
            metrics_port=metrics,
        )
        self._server = install(self._folder / "stock", configuration, sites=[])
        command, environment = superlink_command(self._server)
        scripts = sysconfig.get_path("scripts")  # SuperNode finds its executor by its name alone
        environment = {**environment, "PATH": os.pathsep.join((scripts, os.environ["PATH"]))}
        self._start("superlink", command, environment)
        address = Configuration.read(self._server.configuration).superlink_address
        trusted = ("--root-certificates", str(self._server.ca_certificate))
        with Control(self._server) as control:
            _wait(lambda: _answers(control))
            nodes = [self._node(number, control) for number in range(self._sites)]
        secret = ("--superexec-auth-secret-file", str(self._server.superexec_secret))
        executor = [_program("flower-superexec"), "--runtime-api-address", address]
        self._start("superexec", [*executor, *trusted, *secret], environment)
        for key, port in zip(nodes, runtime, strict=True):
            supernode = [_program("flower-supernode"), "--superlink", address, "--port", str(port)]
            node_key = ("--auth-supernode-private-key", str(key))
            home = {**environment, "FLWR_HOME": str(key.with_suffix(".home"))}
            self._start(key.name, [*supernode, *trusted, *node_key], home)
        with Control(self._server) as control:
            _wait(lambda: list(control.nodes().values()).count("online") == self._sites)

    def _node(self, number: int, control: Control) -> Path:
        """Make a SuperNode's key, and let SuperLink know it."""
        key, path = ec.generate_private_key(ec.SECP384R1()), self._folder / f"node-{number}"
        openssh = serialization.PrivateFormat.OpenSSH
        plain = serialization.NoEncryption()
        path.write_bytes(key.private_bytes(serialization.Encoding.PEM, openssh, plain))
        form = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        control.register(key.public_key().public_bytes(*form).decode())
        return path

    def _start(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        with (self._folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command, env=dict(environment), stdout=log, stderr=log, start_new_session=True
            )
        self._stack.callback(_stop, process)


def _bundle() -> bytes:
    app = Path(stock_app.__file__).read_bytes()
    return build_fab_from_files({"pyproject.toml": _PROJECT.encode(), "stock_app.py": app})[0]


def _program(name: str) -> str:
    return str(Path(sysconfig.get_path("scripts")) / name)


def _answers(control: Control) -> bool:
    with suppress(RunError):
        control.nodes()
        return True
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a process and what it started."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(5)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _wait(reached: Callable[[], bool], *, timeout: float = _START) -> None:
    deadline = time.monotonic() + timeout
    while not reached():
        if time.monotonic() > deadline:
            raise TimeoutError("The stock deployment is stuck.")
        time.sleep(0.2)
