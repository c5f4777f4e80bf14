"""The supervisor keeps its services running, stops them in order, and leaves nothing behind."""

import os
import resource
import signal
import socket
import stat
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from fedlora.errors import RunError
from fedlora.runtime.processes import launcher
from fedlora.runtime.processes.service_state import Process, ServiceState, Supervision
from fedlora.runtime.processes.supervisor import _listen, services_file, supervise
from tests.unit.runtime.processes.supervised import (
    children_of,
    shell,
    start,
    supervised,
    wait_for,
    written,
)

NOBODY = 65534


def alive(pid: int) -> bool:
    """Tell whether a process runs; this test's own children may have ended unnoticed."""
    try:
        return Process.of(pid).alive
    except OSError:
        return False


def test_what_dies_is_started_again_later_each_time(tmp_path: Path) -> None:
    """After 0.5 s, then 1 s, then 2 s; how it ended and what it said last is told."""
    with supervised(tmp_path, shell("frail", "date +%s.%N >> $OUT/starts; echo why; exit 3")) as it:
        wait_for(lambda: it.service("frail").restarts == 3)
        wait_for(lambda: it.service("frail").state == "waiting")
        state = it.service("frail")

    starts = [float(line) for line in (tmp_path / "starts").read_text().split()]
    pauses = [b - a for a, b in pairwise(starts)]
    assert [pause >= least for pause, least in zip(pauses, (0.5, 1, 2), strict=True)] == [True] * 3
    assert state.last_exit == "exit status 3"
    assert state.last_words == ("why",)
    assert state.retry_at is not None
    assert 2 < state.retry_at - state.since <= 4


def test_flowers_own_exit_code_is_told(tmp_path: Path) -> None:
    """Flower exits with status 1 for every error and logs which it was."""
    said = r"printf '\033[91mERROR \033[0m:     Exit Code: 305\nNo connection\n'; exit 1"
    with supervised(tmp_path, shell("node", said)) as it:
        wait_for(lambda: it.service("node").state == "waiting")

        assert it.service("node").last_exit == "Flower's exit code 305"


def test_a_program_that_is_not_there_stops_nothing_else(tmp_path: Path) -> None:
    """Its neighbour runs, and it is tried again."""
    missing = {"name": "missing", "command": ["/no/such/program"]}
    with supervised(tmp_path, missing, shell("there", "sleep 100")) as it:
        wait_for(lambda: it.service("missing").restarts > 0)

        assert it.running("there")


def test_services_stop_in_reverse_order(tmp_path: Path) -> None:
    """The last one first, each asked kindly, and the next only when it has ended."""
    trap = "trap 'sleep 0.2; echo {0} >> $OUT/ends; exit' TERM; echo set > $OUT/{0}; "
    script = trap + "while :; do sleep 0.05; done"
    with supervised(tmp_path, *(shell(n, script.format(n)) for n in "abc")) as it:
        for name in "abc":
            wait_for(lambda set_by=tmp_path / name: written(set_by))
        it.stop()

        assert it.process.returncode == 0
        assert (tmp_path / "ends").read_text().split() == ["c", "b", "a"]
        assert it.service("a").state == "stopped"


def test_what_does_not_end_is_killed(tmp_path: Path) -> None:
    """A service that ignores SIGTERM, and a process that it started, have gone in the end."""
    with supervised(
        tmp_path, shell("deaf", "trap '' TERM; sleep 100 & echo $! > $OUT/child; sleep 101")
    ) as it:
        pid = it.running("deaf")
        wait_for(lambda: written(tmp_path / "child"))
        it.stop()

    assert not alive(pid)
    assert not alive(int((tmp_path / "child").read_text()))


def test_services_die_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    """Nothing runs on without its supervisor, which can tell that it has gone."""
    with supervised(tmp_path, shell("child", "exec sleep 100")) as it:
        pid = it.running("child")
        it.process.kill()
        it.process.wait()

        wait_for(lambda: not alive(pid))
        told = Supervision.read(services_file(tmp_path))
        assert told is not None
        assert not told.supervisor.alive


def test_a_service_whose_supervisor_has_gone_does_not_begin() -> None:
    """A supervisor that dies between fork and the kernel's promise leaves no service either."""
    arguments = [sys.executable, "-I", "-S", launcher.__file__, str(os.getppid())]
    arguments += ["-", "-", "echo", "x"]
    done = subprocess.run(arguments, capture_output=True, check=False)

    assert (done.returncode, done.stdout) == (1, b"")


def test_leftovers_are_ended(tmp_path: Path) -> None:
    """A service that survived its supervisor is killed by the next, before it starts its own."""
    left = subprocess.Popen(["/bin/sleep", "100"], start_new_session=True)
    state = ServiceState(name="left", state="running", process=Process.of(left.pid))
    gone = Process(pid=1, start=0, boot="another boot")
    services_file(tmp_path).parent.mkdir()
    Supervision(supervisor=gone, services=[state]).write(services_file(tmp_path))
    with supervised(tmp_path, shell("new", "sleep 100")) as it:
        it.running("new")

        assert left.wait(timeout=10) == -signal.SIGKILL
        assert it.stop()[0]["service"] == "left"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to another user")
def test_a_folder_of_another_cannot_turn_root_against_others(tmp_path: Path) -> None:
    """Its owner may be one whom the network has taken: links are not followed, lists not believed.

    A lock that is a link is refused and its target stays; a process that the owner names lives.
    """
    victim, run = tmp_path / "victim", tmp_path / "run"
    victim.write_text("root's")
    run.mkdir()
    (run / "supervisor.lock").symlink_to(victim)
    _, said = start(tmp_path, [shell("a", "true")]).communicate(timeout=30)
    assert "supervisor.lock: cannot be written" in said
    assert victim.read_text() == "root's"

    (run / "supervisor.lock").unlink()
    stranger = subprocess.Popen(["/bin/sleep", "100"], start_new_session=True)
    state = ServiceState(name="x", state="running", process=Process.of(stranger.pid))
    Supervision(supervisor=Process.of(stranger.pid), services=[state]).write(
        services_file(tmp_path)
    )
    os.chown(services_file(tmp_path), NOBODY, NOBODY)
    with supervised(tmp_path, shell("a", "sleep 100")) as it:
        it.running("a")
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


def test_a_link_in_a_sockets_place_is_not_given_away(tmp_path: Path, monkeypatch) -> None:
    """Who may write to the folder can be quicker than the change of owner."""
    path, victim, given = tmp_path / "served.sock", tmp_path / "victim", os.chown

    def late(what: Path, *owner: int, **how: bool) -> None:
        what.rename(tmp_path / "the socket")
        what.symlink_to(victim)  # which is not there: to follow it is an error
        given(what, *owner, **how)

    monkeypatch.setattr(os, "chown", late)
    _listen(path, tmp_path).close()
    assert path.is_symlink()


@pytest.mark.parametrize("changed", [{"start": 1}, {"boot": "another"}])
def test_a_stranger_with_a_recorded_pid_is_left_alone(changed: dict[str, object]) -> None:
    """The kernel gives pids again: start and boot must be the recorded ones."""
    stranger = subprocess.Popen(["/bin/sleep", "100"], start_new_session=True)
    recorded = Process(**(vars(Process.of(stranger.pid)) | changed))
    state = ServiceState(name="x", state="running", process=recorded)

    assert Supervision(supervisor=recorded, services=[state]).clear() == []
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


def test_one_supervisor_a_folder(tmp_path: Path) -> None:
    """The second is refused, and says which process has the folder."""
    with supervised(tmp_path, shell("a", "sleep 100")) as it:
        it.running("a")
        second = start(tmp_path, [shell("a", "sleep 100")])
        _, said = second.communicate(timeout=30)

        assert second.returncode == 1
        assert f"the process {it.process.pid} runs it already" in said
        assert it.service("a").restarts == 0


def test_a_second_supervisor_prepares_nothing(tmp_path: Path) -> None:
    """What it would write for its services is what the first one's services read."""
    with supervised(tmp_path, shell("a", "sleep 100")) as it:
        it.running("a")
        with pytest.raises(RunError, match="runs it already"):
            supervise(lambda: pytest.fail("services were prepared"), folder=tmp_path)


_SERVER = """
import os, socket
assert os.environ["LISTEN_FDS"] == "1" and int(os.environ["LISTEN_PID"]) == os.getpid()
connection, _ = socket.socket(fileno=3).accept()
connection.sendall(b"served")
connection.close()
"""


def test_who_connects_while_a_service_restarts_is_served(tmp_path: Path) -> None:
    """The socket stays open: a connection waits for the next process of the service."""
    path = tmp_path / "served.sock"
    server = {"name": "server", "command": [sys.executable, "-c", _SERVER], "listen": str(path)}
    with supervised(tmp_path, server) as it:
        for _ in range(3):  # each process serves one connection, and ends
            wait_for(path.exists)
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(30)
                client.connect(str(path))
                assert client.recv(100) == b"served"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert it.service("server").last_exit == "exit status 0"


def test_a_socket_whose_path_is_too_long_is_refused(tmp_path: Path) -> None:
    """The kernel takes 107 bytes: the message says so."""
    long = tmp_path / ("x" * 110)
    _, said = start(tmp_path, [shell("a", "true", listen=str(long))]).communicate(timeout=30)

    assert "107 bytes" in said


def test_a_suspended_service_is_started_again(tmp_path: Path) -> None:
    """SIGSTOP, to it or to a process that it started, does not stop the service for good."""
    with supervised(tmp_path, shell("frozen", "sleep 100; true", patience=1.5)) as it:
        pid = it.running("frozen")
        wait_for(lambda: children_of(pid))
        [child] = children_of(pid)
        os.kill(child, signal.SIGSTOP)
        wait_for(lambda: it.service("frozen").restarts == 1)

        assert not alive(child)
        assert it.service("frozen").last_exit == "killed by SIGKILL"


def test_a_service_gets_its_own_environment_only(tmp_path: Path) -> None:
    """What the supervisor's environment holds does not reach a service."""
    os.environ["A_SECRET"] = "seen"
    try:
        with supervised(tmp_path, shell("a", "env > $OUT/e; mv $OUT/e $OUT/env; sleep 100")):
            wait_for((tmp_path / "env").exists)
    finally:
        del os.environ["A_SECRET"]

    assert "A_SECRET" not in (tmp_path / "env").read_text()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a process to another user")
def test_a_service_runs_as_its_user_and_dies_with_its_supervisor(tmp_path: Path) -> None:
    """It has no group of the supervisor's; the change of user undoes no promise of the kernel."""
    identity = "id -u; id -G; exec sleep 100"
    with supervised(tmp_path, shell("theirs", identity, user=[NOBODY, NOBODY])) as it:
        pid = it.running("theirs")
        log = tmp_path / "logs" / "theirs.log"
        wait_for(lambda: log.exists() and len(log.read_text().splitlines()) == 2)
        it.process.kill()
        it.process.wait()

        wait_for(lambda: not alive(pid))
    assert [line.split()[1:] for line in log.read_text().splitlines()] == [[str(NOBODY)]] * 2


def test_a_full_disk_does_not_end_the_supervisor(tmp_path: Path) -> None:
    """When nothing can be written, services go on, and what dies is started again."""
    with supervised(tmp_path, shell("a", "echo line; sleep 100")) as it:
        pid = it.running("a")
        resource.prlimit(it.process.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        os.kill(pid, signal.SIGKILL)

        wait_for(lambda: children_of(it.process.pid) not in ([], [pid]))
        assert it.process.poll() is None
        resource.prlimit(it.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        assert any("cannot be written" in line["event"] for line in it.stop())


def test_a_service_takes_along_what_waits_for_it(tmp_path: Path) -> None:
    """Both are started again; one that ends by itself takes nothing along."""
    waiting, asking = shell("waiting", "sleep 100"), shell("asking", "sleep 100")
    with supervised(tmp_path, waiting, asking | {"takes_along": ["waiting"]}) as it:
        first = it.running("waiting"), it.running("asking")
        os.kill(first[0], signal.SIGKILL)
        wait_for(lambda: it.service("waiting").restarts == 1)
        second = it.running("waiting"), it.running("asking")
        os.kill(second[1], signal.SIGKILL)
        wait_for(lambda: it.service("waiting").restarts == 2)
        third = it.running("waiting"), it.running("asking")

    assert (second[0] != first[0], second[1] == first[1]) == (True, True)
    assert (third[0] != second[0], third[1] != second[1]) == (True, True)
