"""A trainer as it is deployed: what it answers, what kills it, and that nothing gets out of it."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing
from pathlib import Path
from unittest import mock

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.common.constant import PARTITION_ID_KEY
from flwr.supercore.task_identity import TaskIdentity

from fedlora.adapter import AdapterState
from fedlora.errors import BudgetError, DataError, RunError
from fedlora.recipe import Recipe
from fedlora.runtime import records
from fedlora.runtime.client import isolation
from fedlora.runtime.client.folder import SiteFolder
from fedlora.runtime.client.link import TrainerLink, TrainerLostError
from fedlora.runtime.client.probes import Place, Report
from fedlora.runtime.site import client
from fedlora.runtime.site.budget import site_ledger
from fedlora.runtime.site.memory import FOLDER
from fedlora.runtime.site.site import resident_base
from fedlora.wire.codec import Envelope, encode_state
from simulations.campaigns import hostile_program
from simulations.campaigns.hostile_site import USER, site
from simulations.campaigns.hostile_trainer import attempts, reach
from tests.curves import CURVES

SYS_ADMIN = 21


def can_isolate() -> bool:
    """Whether this process may make namespaces and mounts."""
    status = Path("/proc/self/status")
    if not status.exists():
        return False
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("CapEff"))
    return os.geteuid() == 0 and bool(int(line.split()[1], 16) >> SYS_ADMIN & 1)


isolates = pytest.mark.skipif(
    not can_isolate(), reason="the trainer can be isolated by root with SYS_ADMIN alone, on Linux"
)
RECIPE = """\
name: small
sequence_len: 64
micro_batch_size: 4
val_set_size: 0.2
bf16: false
privacy: {{unit: none}}
datasets: [{{path: {data}, site: north}}]
federation: {{rounds: 3, local_steps: 2, quorum: 1}}
"""
PRIVATE = "privacy={unit: example, epsilon: 8, delta: 1e-3, records: 9, evaluation_noise: 6}"
REACHED = {
    "TCP to the host",
    "UDP to the host",
    "an abstract Unix socket",
    "a Unix socket in /tmp",
    "the trainer's own socket, as the gate",
    "a file in the shared /tmp",
    "a file in the shared /dev/shm",
    "System V shared memory",
    "a signal to the gate",
    "the site's keys",
    "the ledger",
    "the policy",
    "writing the ledger",
    "writing the site's data",
}


class Supervised:
    """A site's folder, its trainer, and the gate's end of the link."""

    def __init__(self, folder: SiteFolder, readable: list[Path], wanted: isolation.Isolation):
        self.folder, self.readable, self.wanted = folder, readable, wanted
        self.reports: list[Report] = []
        folder.run.mkdir(parents=True)
        folder.gate.mkdir()
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(folder.trainer_socket))
        self.listener.listen()
        self.link = TrainerLink(folder.trainer_socket, greet=self.greet)
        self.start()

    def start(self) -> None:
        user = USER if self.wanted == "required" else os.geteuid()
        isolation.give_folder(self.folder, user)
        command = isolation.command(
            isolation.trainer(self.folder),
            folder=self.folder,
            user=user,
            readable=self.readable,
            isolation=self.wanted,
            listener=self.listener.fileno(),
        )
        self.process = subprocess.Popen(command, pass_fds=[self.listener.fileno()])

    def greet(self, report: Report) -> None:
        report = isolation.compared(report, gate=Place.here(), user=os.geteuid())
        isolation.require(report, self.wanted)
        self.reports.append(report)

    def ask(self, message: Message, *, timeout: float = 120) -> Message:
        recipe = records.Task.of(message.content).recipe
        with self.at_home():
            return self.link.ask(message, recipe=recipe, site="north", timeout=timeout)

    def at_home(self) -> AbstractContextManager[object]:
        """What is remembered inside the block is the gate's."""
        return mock.patch.dict(os.environ, {FOLDER: str(self.folder.gate)})

    def close(self) -> None:
        self.link.close()
        self.process.kill()
        self.process.wait()
        self.listener.close()


@pytest.fixture(scope="module")
def started() -> Iterator[Callable[[Path], Supervised]]:
    """Return a function that starts a trainer in a folder, isolated where that can be."""
    with ExitStack() as stack:

        def start(path: Path) -> Supervised:
            for each in (path, *path.parents[:2]):
                each.chmod(0o755)  # pytest's folders are their owner's alone
            folder = SiteFolder(path / "site")
            (path / "files").mkdir()
            (path / "link").symlink_to(path / "files")
            (path / "north.jsonl").symlink_to(path / "link" / "rows.jsonl")
            data = path / "north.jsonl"  # links in its name and behind it
            rows = [{"prompt": f"What is {n}?", "completion": f"{n}."} for n in range(12)]
            data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
            wanted = "required" if can_isolate() else "none"
            return stack.enter_context(closing(Supervised(folder, [data], wanted)))

        yield start


@pytest.fixture(scope="module")
def warm(started, tmp_path_factory) -> Supervised:
    """A trainer that several tests ask one after another, as it lives for months."""
    return started(tmp_path_factory.mktemp("warm"))


def recipe_of(supervised: Supervised, *overrides: str) -> Recipe:
    text = RECIPE.format(data=supervised.folder.path.parent / "north.jsonl")
    return Recipe.from_yaml(text, overrides=overrides)


def question(recipe: Recipe, kind: str = "train", number: int = 1) -> Message:
    spec = resident_base(recipe).spec
    envelope = Envelope(spec=spec, run="run", round=number)
    state = AdapterState.initial(spec, seed=recipe.seed)
    adapter = encode_state(state, envelope, compress=recipe.wire.compress)
    task = records.Task(recipe=recipe.to_yaml(), run="run", round=number)
    TaskIdentity.task_id, TaskIdentity.node_id, TaskIdentity.run_id = 1, 1, 1
    return Message(records.instruction(task.to_record(), records.pack(adapter)), 1, kind)


@pytest.mark.slow
def test_it_answers_as_a_site_in_this_process(warm):
    """The same metrics and bytes, round after round, over one connection; its report is sound."""
    context = Context(
        run_id=1, node_id=1, node_config={PARTITION_ID_KEY: 0}, state=RecordDict(), run_config={}
    )
    recipe = recipe_of(warm)
    for kind, number, handler in (
        ("train", 1, client.train),
        ("evaluate", 1, client.evaluate),
        ("train", 2, client.train),
    ):
        message = question(recipe, kind, number)
        found, expected = warm.ask(message).content, handler(message, context).content
        assert records.metrics_of(found) == records.metrics_of(expected)
        if kind == "train":
            assert records.unpack(found) == records.unpack(expected)
    assert len(warm.reports) == 1


@pytest.mark.slow
def test_the_gate_alone_charges(warm):
    """The ledger is the gate's; each private answer has its row there before it comes."""
    recipe = recipe_of(warm, PRIVATE)
    for kind, number in (("evaluate", 0), ("train", 1)):
        warm.ask(question(recipe, kind, number))
    with warm.at_home():
        rows = site_ledger("north").rows("default")
    assert [(row.purpose, row.number) for row in rows] == [("evaluate", 0), ("train", 1)]
    assert (warm.folder.gate / "north" / "ledger.sqlite").exists()
    assert not list(warm.folder.trainer.rglob("ledger.sqlite*"))


@pytest.mark.slow
def test_it_keeps_the_curve_of_its_steps_to_itself(started, tmp_path):
    """The operator's trackers need no network and no folder but its own; private rounds too."""
    supervised = started(tmp_path)
    names = "trackers=[tensorboard, mlflow, wandb]"
    for overrides in ([names], [names, PRIVATE]):
        recipe = recipe_of(supervised, *overrides)
        for number in (1, 2, 2):
            answer = supervised.ask(question(recipe, "train", number)).content
        assert set(records.metrics_of(answer)) == (
            set() if PRIVATE in overrides else {"train_loss"}
        )
        [memory] = supervised.folder.trainer.rglob("trackers.json")
        for name, curve in CURVES.items():
            found = curve(memory.parent, "train/loss")
            assert [step for step, _ in found] == [1, 2, 3, 4], name
            assert len({loss for _, loss in found}) == 4
        shutil.rmtree(memory.parent)


@pytest.mark.slow
def test_what_the_ledger_refuses_is_not_drawn(warm):
    """The gate's own error comes, and the trainer goes on to the next question."""

    def refuse(*_: object) -> None:
        raise BudgetError("It is used up.")

    warm.link.close()
    link = TrainerLink(warm.folder.trainer_socket, greet=warm.greet, charge=refuse)
    private = question(recipe_of(warm, PRIVATE))
    with pytest.raises(BudgetError, match="It is used up"):
        link.ask(private, recipe=records.Task.of(private.content).recipe, site="north", timeout=60)
    assert records.metrics_of(warm.ask(question(recipe_of(warm))).content)


@pytest.mark.slow
def test_its_errors_come_by_name(warm):
    """As its handler raised them, and it goes on."""
    with pytest.raises(DataError, match=r"nowhere\.jsonl"):
        warm.ask(question(recipe_of(warm, "datasets=[{path: /nowhere.jsonl, site: north}]")))
    warm.ask(question(recipe_of(warm), "evaluate"))


@pytest.mark.slow
def test_one_that_is_killed_is_asked_again(started, tmp_path):
    """It is told apart from one that is wrong; the next one answers, from the same socket."""
    supervised = started(tmp_path)
    message = question(recipe_of(supervised), "evaluate")
    supervised.ask(message)
    supervised.process.kill()
    supervised.process.wait()
    with pytest.raises(TrainerLostError):
        supervised.ask(message)
    supervised.start()
    supervised.ask(message)
    assert len(supervised.reports) == 2


def test_one_that_hangs_is_not_waited_for(started, tmp_path):
    """The gate's time is its own."""
    supervised = started(tmp_path)
    for process in (supervised.process.pid, *descendants(supervised.process.pid)):
        os.kill(process, signal.SIGSTOP)
    with pytest.raises(TrainerLostError, match="does not say hello yet"):
        supervised.ask(question(recipe_of(supervised), "evaluate"), timeout=0.5)


@pytest.mark.slow
def test_one_that_takes_too_long_ends_itself(started, tmp_path):
    """Whatever it hangs in: its supervisor starts the next one."""
    supervised = started(tmp_path)
    supervised.ask(question(recipe_of(supervised), "evaluate"))
    long = question(recipe_of(supervised, "federation.local_steps=100000"), "train")
    with pytest.raises(RunError, match=r"did not answer within|has ended"):
        supervised.ask(long, timeout=3)
    assert supervised.process.wait(10) != 0


def test_sigterm_ends_it_at_once(started, tmp_path):
    """And all that is its own."""
    supervised = started(tmp_path)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(supervised.folder.trainer_socket))
        assert connection.recv(1)  # it is there, and now imports what is large
        own = descendants(supervised.process.pid)
        supervised.process.terminate()
        assert supervised.process.wait(10) in {128 + signal.SIGTERM, 128 + signal.SIGKILL}
    assert gone(own)


def test_it_dies_with_who_started_it(tmp_path):
    """Though that is killed, and cannot tell it."""
    folder = SiteFolder(tmp_path / "site")
    folder.trainer.mkdir(parents=True)
    name = f"fedlora-{os.getpid()}"
    for wanted in ["none", "required"] if can_isolate() else ["none"]:
        command = isolation.command(
            [sys.executable, "-c", "import time; time.sleep(600)", name],
            folder=folder,
            user=USER,
            readable=[],
            isolation=wanted,
            listener=0,
        )
        code = f"import subprocess; subprocess.run({command!r})"
        with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as starter:
            wait_until(lambda: named(name))
            starter.kill()
        wait_until(lambda: not named(name))


@isolates
@pytest.mark.slow
def test_nothing_gets_out_of_a_hostile_one():
    """Of all that it answers and reaches for, under the isolation and behind the gate of a site."""
    outcomes = attempts()
    assert [outcome for outcome in outcomes if not outcome.blocked] == []
    reached_for = {outcome.name for outcome in outcomes if outcome.tried == "to reach"}
    assert reached_for == set(hostile_program.REACHES)
    assert len(outcomes) - len(reached_for) > 40


@isolates
def test_what_it_reaches_for_is_there():
    """Without isolation it gets there: the attempts are attempts."""
    with site() as folder:
        outcomes = reach(folder, "none")
    assert {outcome.name for outcome in outcomes if not outcome.blocked} >= REACHED


def descendants(process: int) -> list[int]:
    """Return the processes that a process has started, and these, and so on."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
        if parent == process:
            found += [int(path.parent.name), *descendants(int(path.parent.name))]
    return found


def gone(processes: list[int]) -> bool:
    return not any(Path(f"/proc/{process}").exists() for process in processes)


def named(argument: str) -> bool:
    """Whether a process runs that has this argument at its end."""
    end = f"time.sleep(600)\0{argument}\0".encode()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().endswith(end) and b"confine" not in path.read_bytes():
                return True
        except OSError:  # it has ended
            continue
    return False


def wait_until(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.05)
