"""Whole private runs: what is charged before it is drawn, what leaves, and what is sent again."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict

from fedlora.errors import DataError, RunError
from fedlora.privacy.accounting.renyi_filter import RenyiFilter
from fedlora.privacy.ledger import EMPTY, Ledger
from fedlora.privacy.mechanism import KeyStream
from fedlora.runtime import simulation
from fedlora.runtime.aggregator.server import serve
from fedlora.runtime.carriers.in_process import InProcessGrid
from fedlora.runtime.charges import run_charges
from fedlora.runtime.plan import plan
from fedlora.runtime.run_folder import RunFolder
from fedlora.runtime.simulation import start
from fedlora.runtime.site.client import app
from fedlora.runtime.site.memory import FOLDER
from fedlora.runtime.site.site import Site

PRIVATE = (
    "privacy={unit: example, epsilon: 8, delta: 1e-3, records: 20, evaluation_noise: 6}",
    "federation={rounds: 2, local_steps: 2}",
)
EVALUATED = 3
"""Times that a site is asked: before the first round and after each."""


def play(recipe, folder: Path) -> RunFolder:
    run = simulation.start(plan(recipe), runs=folder)
    simulation.simulate(run, observe=lambda _: None)
    return run


def ledger(run: RunFolder, site: str) -> Ledger:
    return Ledger(run.path / "sites" / site / "ledger.sqlite", new_filter=RenyiFilter)


@pytest.fixture
def begun(small_recipe, tmp_path, monkeypatch):
    """Return a run that is about to start, with some overrides."""

    def begin(*overrides: str) -> RunFolder:
        run = start(plan(small_recipe(*PRIVATE, *overrides)), runs=tmp_path)
        monkeypatch.setenv(FOLDER, str(run.path / "sites"))
        return run

    return begin


@pytest.fixture
def finished(small_recipe, tmp_path) -> RunFolder:
    return play(small_recipe(*PRIVATE), tmp_path)


def test_everything_that_is_drawn_was_charged(finished):
    """Each site's ledger holds its rounds and evaluations, and no more than was reserved."""
    recipe = finished.recipe()
    for site in recipe.site_names:
        rows = ledger(finished, site).rows("default")
        assert [(r.purpose, r.number) for r in rows] == [
            ("evaluate", 0),
            ("train", 1),
            ("evaluate", 1),
            ("train", 2),
            ("evaluate", 2),
        ]
        balance = ledger(finished, site).balances()["default"]
        planned = {replace(charge, sensitivity=1.0) for charge in run_charges(recipe, site)}
        assert set(balance.spent) == planned
        assert not any(balance.reserved.values())


def test_nothing_leaves_that_was_not_noised(finished):
    """No training loss, the expected number of examples, a public denominator; it is said so."""
    recipe = finished.recipe()
    records = finished.records()
    for record in records[1:]:
        for facts in record["folded"].values():
            assert "train_loss" not in facts
            assert facts["num_examples"] == recipe.examples_of_round[-1] == 8
    for record in records:
        assert [tokens for _, tokens in record["evaluation"].values()] == [5.0, 5.0]
    assert recipe.federation.method == "freeze-a"
    report = finished.report.read_text(encoding="utf-8")
    assert "Example-level differential privacy: ε is 8 at δ 0.001" in report
    assert "Training loss by round" not in report


def test_noise_is_never_repeated_unless_the_recipe_says_so(small_recipe, tmp_path):
    """Two runs of one recipe differ; under the flag they are equal, and the report says it."""
    fewer = (*PRIVATE, "federation.rounds=1")
    secure = [play(small_recipe(*fewer), tmp_path / f"s{i}") for i in range(2)]
    flagged = (*fewer, "simulation.reproducible_noise=true")
    repeated = [play(small_recipe(*flagged), tmp_path / f"r{i}") for i in range(2)]
    values = [run.load().adapter.values for run in (*secure, *repeated)]
    assert not torch.equal(values[0], values[1])
    assert torch.equal(values[2], values[3])
    assert "This run protects nobody" in repeated[0].report.read_text(encoding="utf-8")
    assert "This run protects nobody" not in secure[0].report.read_text(encoding="utf-8")


class Asks(InProcessGrid):
    """Carries each instruction twice; remembers both replies."""

    def __init__(self, clients: int) -> None:
        super().__init__(app, clients=clients)
        self.replies: list[tuple[Message, Message]] = []

    def _answer(self, message: Message) -> Message:
        first, second = super()._answer(message), super()._answer(message)
        if message.metadata.message_type != "query":
            self.replies.append((first, second))
        return second


def test_asked_again_a_site_sends_the_very_same_bytes(begun):
    """Without a new charge, for training and for evaluation."""
    run = begun()
    grid = Asks(2)
    serve(grid, run.path, observe=lambda _: None)
    assert len(grid.replies) == 2 * (2 + EVALUATED)
    for first, second in grid.replies:
        assert first.content == second.content
    assert len(ledger(run, "north").rows("default")) == 2 + EVALUATED


def test_a_lost_answer_is_a_new_charge(begun, monkeypatch):
    """A site that died after its draws charges again, with fresh noise, as long as it may.

    Nothing is refunded, so the last round finds nothing left.
    """
    run = begun("federation.evaluate_every=0", "privacy.evaluation_noise=null")
    monkeypatch.setattr("fedlora.runtime.site.mods.Outbox.keep", lambda *_: None)
    grid = Asks(2)
    with pytest.raises(RunError, match="The site's privacy budget does not allow it"):
        serve(grid, run.path, observe=lambda _: None)
    first, second = grid.replies[0]
    assert first.content != second.content
    rows = ledger(run, "north").rows("default")
    assert [(row.number, row.attempt) for row in rows] == [(1, 1), (1, 2)]


class Strays(InProcessGrid):
    """Asks for each answer in another round, too; remembers those replies."""

    def __init__(self, number: int) -> None:
        super().__init__(app, clients=2)
        self.number = number
        self.replies: list[Message] = []

    def _answer(self, message: Message) -> Message:
        kind, content = message.metadata.message_type, message.content
        if kind != "query":
            stray = RecordDict(dict(content))
            stray["task"] = ConfigRecord({**content.config_records["task"], "round": self.number})
            asked = Message(stray, message.metadata.dst_node_id, kind, group_id="stray")
            self.replies.append(super()._answer(asked))
        return super()._answer(message)


@pytest.mark.parametrize("number", [3, 9])
@pytest.mark.parametrize("overrides", [(), ("privacy={unit: none}",)])
def test_only_what_is_planned_is_answered(begun, overrides, number):
    """Whatever the aggregator asks for, and nothing is charged for the question."""
    run = begun(*overrides)
    grid = Strays(number)
    serve(grid, run.path, observe=lambda _: None)
    assert grid.replies
    assert all(reply.has_error() for reply in grid.replies)
    if not overrides:
        assert len(ledger(run, "north").rows("default")) == 2 + EVALUATED
    else:
        assert all("does not plan" in reply.error.reason for reply in grid.replies)


def test_reproducible_noise_is_for_simulated_sites_alone(begun):
    """A recipe that comes over the network cannot turn it on."""
    run = begun("simulation.reproducible_noise=true")
    with pytest.raises(RunError, match="privacy budget"):
        serve(InProcessGrid(app, clients=2), run.path, observe=lambda _: None)
    assert ledger(run, "north").head() == EMPTY  # not even the run's maximum was reserved


def test_an_account_outlives_its_runs(small_recipe, tmp_path, monkeypatch):
    """Where the operator names the folder: the second run finds the first one's charges."""
    monkeypatch.setenv(FOLDER, str(tmp_path / "mine"))
    fewer = (*PRIVATE, "federation.rounds=1")
    runs = [play(small_recipe(*fewer), tmp_path / name) for name in ("one", "two")]
    account = Ledger(tmp_path / "mine" / "north" / "ledger.sqlite", new_filter=RenyiFilter)
    assert {row.run for row in account.rows("default")} == {run.name for run in runs}
    assert not (runs[0].path / "sites").exists()


def test_plain_text_is_no_set_of_records(small_recipe, tmp_path):
    """Its paragraphs are packed into rows: one more would move all after it."""
    notes = tmp_path / "notes.txt"
    notes.write_text("One.\n\nTwo.\n", encoding="utf-8")
    recipe = small_recipe(*PRIVATE, f"datasets=[{{path: {notes}, site: a}}]")
    with pytest.raises(DataError, match=r"Write the records as \.jsonl"):
        plan(recipe)


def test_what_a_private_site_says_of_its_errors_is_a_closed_list(begun, monkeypatch, caplog):
    """The aggregator learns nothing of the text; the site's own log has it."""

    def fail(*_: object, **__: object) -> None:
        raise ValueError("row 7: Mrs Miller's diagnosis")

    run = begun("federation.evaluate_every=0", "privacy.evaluation_noise=null")
    monkeypatch.setattr("fedlora.runtime.site.private_round.SiteBudget.training", fail)
    grid = Asks(2)
    with pytest.raises(RunError, match="quorum") as caught:
        serve(grid, run.path, observe=lambda _: None)
    assert "The site could not answer; its own log says why." in str(caught.value)
    assert "Miller" not in str(caught.value)
    assert "Miller" in caplog.text


def test_a_spent_account_ends_a_sites_part(begun, caplog):
    """A budget that the operator opened before is kept, whatever the recipe asks for.

    The site's log says in one line whose it is and what to do: it is no fault of the program.
    """
    run = begun("federation.evaluate_every=0", "privacy.evaluation_noise=null")
    ledger(run, "north").open_account("default", epsilon=2.0, delta=1e-3)
    with pytest.raises(RunError, match="The site's privacy budget does not allow it"):
        serve(InProcessGrid(app, clients=2), run.path, observe=lambda _: None)
    assert ledger(run, "north").rows("default") == []
    (logged,) = (record for record in caplog.records if record.name == "fedlora.runtime.site.mods")
    assert logged.getMessage().startswith(f"north: Run {run.name} asks for more than is left.")
    assert not logged.exc_info


def test_the_noise_is_what_was_charged(small_recipe, tmp_path, monkeypatch):
    """A run without noise at the same draws differs from the private one by the noise alone."""
    quiet = KeyStream.gaussian
    calls = []

    def counted(stream: KeyStream, count: int) -> torch.Tensor:
        calls.append(count)
        return quiet(stream, count)

    monkeypatch.setattr(KeyStream, "gaussian", counted)
    run = play(small_recipe(*PRIVATE, "federation.rounds=1"), tmp_path)
    sent = run.spec().part("B").size
    assert calls.count(sent) == 2 * 2  # a draw for each step of each site
    assert calls.count(1) == 2 * 2  # one for each evaluation of each site
    assert json.loads((run.path / "rounds.jsonl").read_text().splitlines()[1])["round"] == 1


def test_a_rows_padding_is_its_own_business(finished):
    """Whatever else is drawn, a row is padded to the same length, and none is left out."""
    recipe = finished.recipe()
    site = Site.open(recipe, "north")
    rows = site.train_rows
    alone = {
        len(row.input_ids): next(site._batching.padded_alone([row])).input_ids.shape[1]
        for row in rows
    }
    together = list(site._batching.padded_alone(rows))
    assert sum(len(batch.input_ids) for batch in together) == len(rows)
    for batch in together:
        assert {alone[int(n)] for n in batch.attention_mask.sum(1)} == {batch.input_ids.shape[1]}
    assert list(site._batching.padded_alone([])) == []


def test_the_clip_norm_may_follow_a_quantile(small_recipe, tmp_path):
    """With the same noise overall: the run is played, and is another one."""
    flagged = (*PRIVATE, "federation.rounds=1", "simulation.reproducible_noise=true")
    fixed = play(small_recipe(*flagged), tmp_path / "fixed")
    moving = play(small_recipe(*flagged, "privacy.clip_quantile=0.5"), tmp_path / "moving")
    one, other = (ledger(run, "north").rows("default")[1].charge for run in (fixed, moving))
    assert one == other
    assert not torch.equal(fixed.load().adapter.values, moving.load().adapter.values)
