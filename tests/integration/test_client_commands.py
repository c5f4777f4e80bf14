"""``fedlora client``: enrolling, checking, starting and its state, against a real aggregator."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedlora.runtime.client.folder import SiteFolder
from fedlora.runtime.client.status import status
from fedlora.runtime.client.supernode import supernode
from fedlora.runtime.processes.service_state import ServiceState, Supervision
from fedlora.runtime.processes.supervisor import services_file
from fedlora.runtime.server.admission import admit, revoke
from fedlora.runtime.server.control import Control
from fedlora.runtime.server.folder import ServerFolder
from fedlora.sections import EMBEDDED
from fedlora.training.base_model.files import digest, resolve
from tests.deployment import ROOT, new_aggregator, running_front, running_superlink, wait_until

_SUPERVISE = """
import sys
from pathlib import Path
from fedlora.runtime.client.folder import SiteFolder
from fedlora.runtime.client.supernode import supernode
from fedlora.runtime.processes.supervisor import supervise
folder = SiteFolder(Path(sys.argv[1]))
supervise(lambda: [supernode(folder, user=None)], folder=folder.path)
"""


def fedlora(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command of the command line."""
    return subprocess.run(
        [sys.executable, "-m", "fedlora", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"COLUMNS": "300"},
    )


@pytest.fixture(scope="module")
def aggregator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerFolder]:
    """An aggregator that runs."""
    folder = new_aggregator(
        tmp_path_factory.mktemp("aggregator") / "server", sites=["north", "south", "east"]
    )
    with running_superlink(folder), running_front(folder):
        yield folder


def enrolled(aggregator: ServerFolder, site: str, path: Path) -> SiteFolder:
    """Enrol a site, admit it, and return its folder."""
    done = fedlora("client", "enroll", aggregator.bundle(site), "--dir", path)
    found = re.search(r"Your keys: +(\S+)", done.stdout)
    assert found, done.stderr
    admit(aggregator, site, fingerprint=found[1])
    return SiteFolder(path)


@pytest.mark.slow
def test_from_the_bundle_to_a_site_that_is_ready(aggregator: ServerFolder, tmp_path: Path) -> None:
    """Enrolling tells the fingerprint to compare; check finds what is missing, then nothing."""
    path = tmp_path / "north"
    folder = enrolled(aggregator, "north", path)
    unready = fedlora("client", "check", "--dir", path)

    assert unready.returncode == 1
    assert re.search(r"failed +data .*there is no such file", unready.stdout)
    assert fedlora("client", "start", "--dir", path).returncode == 2

    folder.configuration.write_text(
        "site: north\n"
        "data: [{path: standard-library, packages: [json]}]\n"
        "trainer: {isolation: none}\n"
        "policy:\n"
        "  bounds:\n"
        f"    base_models: [{{digest: '{digest(resolve(EMBEDDED, None))}'}}]\n"
        "    privacy: {unit: none}\n"
    )
    ready = fedlora("client", "check", "--dir", path)

    assert ready.returncode == 0, ready.stdout
    assert not re.search(r"(?m)^failed", ready.stdout)
    assert re.search(r"ok +enrolment +admitted", ready.stdout)
    assert re.search(r"warning +trainer's isolation +none, by your word", ready.stdout)
    assert "What the aggregator learns of this site" in ready.stdout


def test_check_takes_a_step(aggregator: ServerFolder, tmp_path: Path) -> None:
    """The recipe's step is taken on the site's own data; a recipe beyond the policy is refused."""
    path = tmp_path / "south"
    folder = enrolled(aggregator, "south", path)
    folder.configuration.write_text(
        "site: gui\n"
        "data: [{path: standard-library, packages: [json]}]\n"
        "trainer: {isolation: none}\n"
        "policy:\n"
        "  bounds:\n"
        f"    base_models: [{{digest: '{digest(resolve(EMBEDDED, None))}'}}]\n"
        "    privacy: {unit: none}\n"
    )
    stepped = fedlora("client", "check", "--dir", path, "--step", ROOT / "fedlora" / "demo.yaml")

    assert re.search(r"ok +one step +.*a step in .*loss \d", stepped.stdout), stepped.stdout
    assert re.search(r"failed +site's name .*it enrolled as south", stepped.stdout)


def test_nothing_starts_without_a_policy(tmp_path: Path) -> None:
    """Fail closed: no policy, no run."""
    (tmp_path / "site.yaml").write_text("site: north\ndata: [{path: standard-library}]\n")
    started = fedlora("client", "start", "--dir", tmp_path)

    assert started.returncode == 2
    assert "policy is missing" in started.stderr


def test_a_site_that_does_not_run_says_so(aggregator: ServerFolder, tmp_path: Path) -> None:
    """Status exits with 1."""
    fedlora("client", "enroll", aggregator.bundle("east"), "--dir", tmp_path / "east")
    shown = fedlora("client", "status", "--dir", tmp_path / "east")

    assert shown.returncode == 1
    assert "not running" in shown.stdout
    assert re.search(r"enrolment +waiting", shown.stdout)


@pytest.fixture
def site(aggregator: ServerFolder, tmp_path: Path) -> SiteFolder:
    """A site of its own that is admitted; its SuperNode does not run yet."""
    from fedlora.runtime.server.bundle import invite  # noqa: PLC0415 - only here

    name = f"site-{os.urandom(4).hex()}"
    invite(aggregator, name)
    return enrolled(aggregator, name, tmp_path / name)


@pytest.fixture
def supervisor(site: SiteFolder) -> Iterator[subprocess.Popen[bytes]]:
    """A supervisor of the site's SuperNode."""
    command = [sys.executable, "-c", _SUPERVISE, str(site.path)]
    started = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    yield started
    started.terminate()
    started.wait(30)


def node(site: SiteFolder) -> ServiceState:
    """Return how the SuperNode is."""
    told = Supervision.read(services_file(site.path))
    return told.services[0] if told else ServiceState(name="supernode")


def greetings(site: SiteFolder) -> int:
    """Return how often SuperLink let the SuperNode in."""
    log = site.logs / "supernode.log"
    return log.read_text().count("SuperNode ID: ") if log.exists() else 0


def online(aggregator: ServerFolder, site: SiteFolder) -> bool:
    """Tell whether SuperLink sees the site's SuperNode."""
    return greetings(site) > 0 and node(site).state == "running"


@pytest.mark.slow
def test_a_killed_supernode_is_back_within_seconds(
    aggregator: ServerFolder, site: SiteFolder, supervisor: subprocess.Popen[bytes]
) -> None:
    """SuperLink would take it for alive for another minute; its successor signs it off first."""
    wait_until(lambda: online(aggregator, site))
    process, before = node(site).process, greetings(site)
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    began = time.monotonic()
    wait_until(lambda: greetings(site) > before)

    assert time.monotonic() - began < 30
    assert node(site).restarts == 1


@pytest.mark.slow
def test_a_copy_of_a_site_is_kept_out(
    aggregator: ServerFolder, site: SiteFolder, supervisor: subprocess.Popen[bytes]
) -> None:
    """Two SuperNodes of one site at once would draw noise twice for one charge."""
    wait_until(lambda: online(aggregator, site))
    copy = SiteFolder(site.path.with_name("copy"))
    subprocess.run(["/bin/cp", "-a", str(site.path), str(copy.path)], check=True)
    service = supernode(copy, user=None)
    second = subprocess.run(
        list(service.command),
        env=dict(service.environment),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert second.returncode == 1
    assert "Exit Code: 305" in second.stdout + second.stderr
    assert node(site).restarts == 0


@pytest.mark.slow
def test_a_site_that_is_revoked_is_told(
    aggregator: ServerFolder, site: SiteFolder, supervisor: subprocess.Popen[bytes]
) -> None:
    """Its SuperNode is turned away, is tried again ever more rarely, and status says why."""
    wait_until(lambda: online(aggregator, site))
    assert status(site).connection == "connected"
    revoke(aggregator, status(site).site, reason="test")
    wait_until(lambda: node(site).state == "waiting")

    assert "the aggregator refuses this site's key" in status(site).connection
    assert status(site).enrolment == "revoked"


@pytest.mark.slow
def test_a_supernode_says_goodbye_when_it_is_stopped(
    aggregator: ServerFolder, site: SiteFolder, supervisor: subprocess.Popen[bytes]
) -> None:
    """SuperLink sees it offline at once, so that it can start again at once."""
    wait_until(lambda: online(aggregator, site))
    supervisor.terminate()
    supervisor.wait(30)
    with Control(aggregator) as control:
        states = set(control.nodes().values())

    assert "online" not in states


@pytest.mark.parametrize(
    "command",
    [["check"], ["start"], ["status"], ["runs"], ["approve", "run"], ["evidence", "show"]],
)
def test_a_folder_that_is_no_sites_is_refused(command_line, tmp_path, command) -> None:
    """Each command says so, and what to do, in place of an answer about nothing."""
    code, out, error = command_line("client", *command, "--dir", tmp_path)

    assert (code, out) == (2, "")
    assert f"{tmp_path}: this is not a site's folder. Name it with --dir" in error
