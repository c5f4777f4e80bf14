"""A ledger that was put back is caught, also with its mirror: the aggregator remembers its head."""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Message

from fedlora.privacy.accounting.renyi_filter import RenyiFilter
from fedlora.privacy.ledger import Ledger
from fedlora.runtime import simulation
from fedlora.runtime.aggregator.server import serve
from fedlora.runtime.carriers.in_process import InProcessGrid
from fedlora.runtime.plan import plan
from fedlora.runtime.run_folder import RunFolder
from fedlora.runtime.simulation import start
from fedlora.runtime.site.client import app
from fedlora.runtime.site.memory import FOLDER

PRIVATE = (
    "privacy={unit: example, epsilon: 8, delta: 1e-3, records: 20}",
    "federation={rounds: 2, local_steps: 1, quorum: 1, evaluate_every: 0}",
)
EVALUATED = (
    "privacy={unit: example, epsilon: 8, delta: 1e-3, records: 20, evaluation_noise: 6}",
    "federation={rounds: 1, local_steps: 1, quorum: 1}",
)
_REFUSED = {"north": "The site's privacy budget does not allow it."}


class Between(InProcessGrid):
    """Carries messages as usual; does something before the instructions of a round."""

    def __init__(self, *, number: int, act: Callable[[], object]) -> None:
        super().__init__(app, clients=2)
        self.number, self.act = number, act

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        if messages and messages[0].metadata.group_id == str(self.number):
            self.act()
        return super().push_messages(messages)


class Answers(InProcessGrid):
    """Carries messages as usual; what north says of its ledger is altered from round 1 on."""

    def __init__(self, alter: Callable[[ConfigRecord], object]) -> None:
        super().__init__(app, clients=2)
        self.alter = alter

    def _answer(self, message: Message) -> Message:
        reply = super()._answer(message)
        later = message.metadata.message_type != "query" and message.metadata.group_id != "0"
        if later and message.metadata.dst_node_id == 1:
            self.alter(reply.content.config_records["ledger"])
        return reply


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The folder of sites that are not simulated."""
    monkeypatch.setenv(FOLDER, str(tmp_path / "sites"))
    return tmp_path / "sites"


@pytest.fixture
def begin(small_recipe, folder, tmp_path) -> Callable[..., RunFolder]:
    """Return a run that is about to start, beside those before it."""
    return lambda *overrides: start(
        plan(small_recipe(*(overrides or PRIVATE))), runs=tmp_path / "runs"
    )


def play(run: RunFolder, grid: InProcessGrid | None = None) -> RunFolder:
    serve(grid or InProcessGrid(app, clients=2), run.path, observe=lambda _: None)
    return run


def ledger(folder: Path, site: str) -> Ledger:
    return Ledger(folder / site / "ledger.sqlite", new_filter=RenyiFilter)


def copied(folder: Path, backup: Path) -> Callable[[], object]:
    """Keep a copy of north's ledger, mirror and all; return what puts it back."""
    shutil.copytree(folder / "north", backup)
    return lambda: shutil.copytree(backup, folder / "north", dirs_exist_ok=True)


def test_yesterdays_ledger_and_mirror_are_caught(begin, folder, tmp_path):
    """At the next run's first round, by an aggregator that was started anew; others go on."""
    play(begin())
    restore = copied(folder, tmp_path / "yesterday")
    play(begin())
    restore()
    old = ledger(folder, "north").head()
    for record in play(begin()).records()[1:]:
        assert record["refused"] == _REFUSED
        assert list(record["folded"]) == ["south"]
    assert ledger(folder, "north").head() == old  # nothing was charged


def test_a_ledger_of_before_the_last_round_is_caught_in_the_next(begin, folder, tmp_path, caplog):
    """Within a run, too; the site's own log says what to do."""
    play(begin())
    restore = copied(folder, tmp_path / "before")
    record = play(begin(), Between(number=2, act=restore)).records()[-1]
    assert record["refused"] == _REFUSED
    assert "an older database was restored" in caplog.text
    assert "the aggregator has seen" in caplog.text


def test_a_ledger_that_was_thrown_away_is_caught(begin, folder):
    """To begin with an empty one is to begin with an old one."""
    play(begin())
    shutil.rmtree(folder / "north")
    assert play(begin()).records()[-1]["refused"] == _REFUSED


class Lost(InProcessGrid):
    """Carries messages as usual; the first reply of the second round never arrives."""

    def __init__(self) -> None:
        super().__init__(app, clients=2)

    def _answer(self, message: Message) -> Message:
        reply = super()._answer(message)
        if message.metadata.group_id == "2":
            raise KeyboardInterrupt
        return reply


def test_an_answer_that_is_sent_again_is_accepted(begin, folder):
    """Though the aggregator stopped before it saw that head; nothing is charged again."""
    run = begin()
    with pytest.raises(KeyboardInterrupt):
        play(run, Lost())
    charged = ledger(folder, "north").head()
    play(run)
    assert ledger(folder, "north").head() == charged
    assert [record["refused"] for record in run.records()] == [{}, {}, {}]
    heads = {site: ledger(folder, site).head() for site in ("north", "south")}
    for site, head in heads.items():
        kept = run.path.parent / "receipts" / site
        assert kept.read_text(encoding="ascii") == f"{head.count} {head.hash}\n"


ALTERATIONS = {
    "older": (lambda record: record.update(count=1), "north says that its ledger has 1 rows"),
    "another": (
        lambda record: record.update(count=3, hash="0" * 64),
        "in its place",
    ),
    "none": (lambda record: record.clear(), "how far the site's ledger has come"),
    "more": (lambda record: record.update(rows=3), "and nothing else"),
}


@pytest.mark.parametrize("alteration", ALTERATIONS)
def test_a_reply_with_a_bad_head_is_refused_by_name(begin, alteration):
    """To training and to an evaluation; the rest of the cohort is folded."""
    alter, says = ALTERATIONS[alteration]
    run = play(begin(*EVALUATED), Answers(alter))
    before, record = run.records()
    assert not before["unmeasured"]
    assert list(record["refused"]) == list(record["unmeasured"]) == ["north"]
    assert says in record["refused"]["north"]
    assert says in record["unmeasured"]["north"]


def test_simulated_sites_that_end_with_their_run_leave_no_receipts(
    small_recipe, tmp_path, monkeypatch
):
    """Nor do those that a user moves to another folder: the next run is one like the first."""
    for name in (None, None, "one", "two"):
        if name:
            monkeypatch.setenv(FOLDER, str(tmp_path / name))
        run = start(plan(small_recipe(*PRIVATE)), runs=tmp_path / "runs")
        simulation.simulate(run, observe=lambda _: None)
        assert [record["refused"] for record in run.records()] == [{}, {}, {}]
    assert not (tmp_path / "runs" / "receipts").exists()
