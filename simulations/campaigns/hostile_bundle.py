"""An app bundle with planted code, sent by a real SuperLink to a site's SuperNode and gate."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import httpx
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message
from flwr.cli.build import build_fab_from_files

from fedlora.errors import FedloraError
from fedlora.runtime.carriers.superlink import carried
from fedlora.runtime.carriers.supernode import next_instruction
from fedlora.runtime.carriers.tasks import Endpoint
from fedlora.runtime.client.folder import SiteFolder
from fedlora.runtime.client.supernode import address_file, secret_file, supernode
from fedlora.runtime.enrolment import JoinBundle
from fedlora.runtime.server.configuration import Configuration
from fedlora.runtime.server.control import Control
from fedlora.runtime.server.folder import ServerFolder
from fedlora.runtime.server.installation import install
from fedlora.runtime.server.superlink import superlink_command
from fedlora.signing import new_key
from simulations.campaigns.gated_site import SITE, gated
from simulations.campaigns.hostile_aggregator import policy_of, recipe_of
from simulations.campaigns.hostile_trainer import Outcome

_Found = TypeVar("_Found")

_PATIENCE = 60.0
_MARK = "planted-by-the-aggregator"
_PROJECT = """\
[project]
name = "hostile"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "evil"
fab-include = ["**/*.py"]

[tool.flwr.app.components]
serverapp = "evil.app:app"
clientapp = "evil.app:app"
"""
_INSTALL = """\
import sys
from pathlib import Path
from flwr.cli.install import install_from_fab
sys.path.insert(0, str(install_from_fab(Path(sys.argv[1]).read_bytes(), skip_prompt=True)))
import evil.app
"""
"""What a stock client app process does with a bundle, in short."""


def attempts() -> list[Outcome]:
    """Send the bundle with an honest instruction, which is answered.

    Raises:
        AssertionError: the bait does not work where it is taken; or the instruction is refused.
        TimeoutError: a process of Flower's does not start.
    """
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder, planted = Path(name), Path(name) / "planted"
        bundle = _bundle(planted)
        _require_bait(bundle, planted, folder / "stock")
        server = stack.enter_context(_superlink(folder / "aggregator"))
        site = stack.enter_context(_supernode(folder / "site", server))
        error = _answered(server, site, bundle)
        if error:
            raise AssertionError(f"The honest instruction was refused: {error}")
        found = [str(path.relative_to(site.path)) for path in _holding(site.path, bundle)]
    return [
        Outcome(
            name="code planted in the app bundle",
            tried="to run",
            blocked=not planted.exists(),
            by="the gate answers in place of the app; what the bundle plants was not there",
        ),
        Outcome(
            name="the app bundle itself",
            tried="to be unpacked",
            blocked=not found,
            by=f"found in {', '.join(found)}" if found else "no file at the site holds any of it",
        ),
    ]


def _bundle(planted: Path) -> bytes:
    """Return a bundle, each module of which writes a file when it is imported."""
    code = f"open({str(planted)!r}, 'w').write({_MARK!r})\n".encode()
    names = ("evil/__init__.py", "evil/app.py", "setup.py", "sitecustomize.py", "conftest.py")
    files = dict.fromkeys(names, code) | {"pyproject.toml": _PROJECT.encode()}
    return build_fab_from_files(files)[0]


def _require_bait(bundle: bytes, planted: Path, home: Path) -> None:
    """Do nothing if the bundle does what it is to do where somebody installs it."""
    home.mkdir()
    file = home / "hostile.fab"
    file.write_bytes(bundle)
    environment = {**os.environ, "FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0"}
    command = [sys.executable, "-c", _INSTALL, str(file)]
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    if not planted.exists():
        raise AssertionError(f"The bundle plants nothing: {done.stderr.decode()}")
    planted.unlink()


def _holding(folder: Path, bundle: bytes) -> Iterator[Path]:
    """Yield the files that hold the bundle, or code of it."""
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            if bundle[:256] in content or _MARK.encode() in content:
                yield path


def _answered(server: ServerFolder, site: SiteFolder, bundle: bytes) -> str:
    """Let an honest instruction come with the bundle; return why it was refused, if it was."""
    recipe = recipe_of()
    endpoint = Endpoint(
        address=address_file(site).read_text(encoding="ascii"),
        secret=secret_file(site).read_bytes(),
    )
    with Control(server) as control:
        node = next(number for number, state in control.nodes().items() if state == "online")
        control.start_run(bundle, config={})
    superlink = Endpoint(
        address=Configuration.read(server.configuration).superlink_address,
        secret=server.superexec_secret.read_bytes(),
        certificates=server.ca_certificate.read_bytes(),
    )
    token = _until(lambda: superlink.acquire("flwr-serverapp"))
    with ExitStack() as stack:
        asked = stack.enter_context(gated(site.path, recipe, policy_of(recipe)))
        content = asked.instruction().content  # before Flower's task begins, which says who sends
        grid = stack.enter_context(carried(superlink, token, still_wanted=lambda: None))
        [sent] = grid.push_messages([Message(content, node, "train")])

        def passed() -> bool:
            with next_instruction(endpoint) as instruction:
                if instruction is not None:
                    instruction.reply(asked.gate.answer(instruction.message))
            return instruction is not None

        _until(passed)
        reply = _until(lambda: next(iter(grid.pull_messages([sent])), None))
    return str(reply.error.reason) if reply.has_error() else ""


@contextmanager
def _superlink(path: Path) -> Iterator[ServerFolder]:
    front, superlink, metrics = _free_ports()
    configuration = Configuration(
        hosts=("127.0.0.1",),
        listen="127.0.0.1",
        port=front,
        superlink_port=superlink,
        metrics_port=metrics,
    )
    folder = install(path, configuration, sites=[SITE])
    command, environment = superlink_command(folder)
    with _running(command, environment, folder.path / "superlink.log"), Control(folder) as control:

        def answers() -> bool:
            with suppress(FedloraError, httpx.HTTPError):
                control.nodes()
                return True
            return False

        _until(answers)
        yield folder


@contextmanager
def _supernode(path: Path, server: ServerFolder) -> Iterator[SiteFolder]:
    """Yield the folder of a site that is enrolled, with its SuperNode running and connected."""
    folder, key = SiteFolder(path), ec.generate_private_key(ec.SECP384R1())
    for each in (folder.credentials, folder.run, folder.logs):
        each.mkdir(parents=True)
    superlink = Configuration.read(server.configuration).superlink_address
    join = JoinBundle.read(server.bundle(SITE))
    join = join.model_copy(update={"aggregator": superlink})
    folder.join.write_text(join.without_token().to_yaml(), encoding="utf-8")
    new_key(folder.gate_key)
    encoding, form = serialization.Encoding, serialization.PublicFormat.OpenSSH
    private = serialization.PrivateFormat.OpenSSH
    folder.node_key.write_bytes(
        key.private_bytes(encoding.PEM, private, serialization.NoEncryption())
    )
    public = key.public_key().public_bytes(encoding.OpenSSH, form).decode()
    service = supernode(folder, user=None)
    with Control(server) as control:
        node = control.register(public)
        with _running(service.command, service.environment, folder.logs / "supernode.log"):
            _until(lambda: control.nodes()[node] == "online")
            yield folder


@contextmanager
def _running(command: Sequence[str], environment: Mapping[str, str], log: Path) -> Iterator[None]:
    with log.open("ab") as said:
        process = subprocess.Popen(command, env=environment, stdout=said, stderr=said)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _until(look: Callable[[], _Found | None]) -> _Found:
    """Return what is found, once it is.

    Raises:
        TimeoutError: it is not.
    """
    deadline = time.monotonic() + _PATIENCE
    while not (found := look()):
        if time.monotonic() > deadline:
            raise TimeoutError("This should have happened by now.")
        time.sleep(0.2)
    return found


def _free_ports() -> list[int]:
    """Return three ports of loopback that nobody listens on."""
    with ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        return [int(server.getsockname()[1]) for server in servers]
