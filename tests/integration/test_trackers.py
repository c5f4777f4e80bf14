"""A run's curves in the trackers that its recipe names."""

import math

import pytest

from fedlora.errors import RecipeError
from fedlora.runtime import simulation
from fedlora.runtime.comparison import overall
from fedlora.runtime.events import Event, RoundFinished, RoundStarted, UpdateSettled
from fedlora.runtime.plan import plan
from fedlora.runtime.reports import findings
from fedlora.runtime.run_folder import RunFolder
from tests.curves import CURVES, tensorboard_curve

ALL = "trackers=[tensorboard, mlflow, wandb]"


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    """Nobody's server is told of a test."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)


class Stop:
    """An observer that presses Ctrl-C at the second event of a kind."""

    def __init__(self, kind: type) -> None:
        self.kind, self.left = kind, 2

    def __call__(self, event: Event) -> None:
        self.left -= isinstance(event, self.kind)
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize("kind", [RoundStarted, UpdateSettled, RoundFinished])
def test_a_stopped_run_has_each_round_once_in_each_tracker(small_recipe, tmp_path, kind):
    """The values are those of ``rounds.jsonl``, wherever the run was stopped."""
    run = simulation.start(plan(small_recipe(ALL)), runs=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        simulation.simulate(run, observe=Stop(kind))
    simulation.simulate(RunFolder.open(run.path), observe=lambda _: None)
    simulation.simulate(RunFolder.open(run.path), observe=lambda _: None)  # it is complete
    losses = {r["round"]: findings.evaluation(r) for r in run.records()}
    expected = [(number, overall(by).loss) for number, by in losses.items()]
    assert [number for number, _ in expected] == [0, 1, 2, 3]
    for name, curve in CURVES.items():
        assert_equal(curve(run.path, "eval/loss"), expected, name)
        at_north = [(number, by["north"].loss) for number, by in losses.items()]
        assert_equal(curve(run.path, "eval/loss/north"), at_north, name)
        assert [number for number, _ in curve(run.path, "train/loss/south")] == [1, 2, 3]


def assert_equal(found, expected, name):
    assert [step for step, _ in found] == [step for step, _ in expected], name
    pairs = zip(found, expected, strict=True)
    assert all(math.isclose(a, b, rel_tol=1e-6) for (_, a), (_, b) in pairs), name


def test_the_recipes_trackers_are_the_aggregators(small_recipe, tmp_path, monkeypatch):
    """No simulated site keeps a curve, and none of its rows or reasons is in one."""
    monkeypatch.setenv("FEDLORA_SITES", str(tmp_path / "sites"))
    run = simulation.start(plan(small_recipe("trackers=[tensorboard]")), runs=tmp_path / "runs")
    simulation.simulate(run, observe=lambda _: None)
    assert len(tensorboard_curve(run.path, "eval/loss")) == 4
    assert not list(tmp_path.glob("sites/**/*tfevents*"))
    [written] = (run.path / "tensorboard").iterdir()
    assert b"is a fruit" not in written.read_bytes()


def test_private_rounds_have_no_training_loss(small_recipe, tmp_path):
    """With protected examples a tracker gets what left the sites: noised, or not at all."""
    private = "privacy={unit: example, epsilon: 8, delta: 1e-3, records: 8, evaluation_noise: 6}"
    overrides = [private, "trackers=[tensorboard]", "simulation.reproducible_noise=true"]
    run = simulation.start(plan(small_recipe(*overrides, "federation.rounds=1")), runs=tmp_path)
    simulation.simulate(run, observe=lambda _: None)
    assert [number for number, _ in tensorboard_curve(run.path, "eval/loss")] == [0, 1]
    with pytest.raises(KeyError):
        tensorboard_curve(run.path, "train/loss")


def test_rounds_that_hide_clients_are_not_tracked(small_recipe):
    """Their numbers tell of single clients; it is said before anything is loaded."""
    unit = "privacy={unit: client, epsilon: 50, delta: 1e-2, clip_norm: 1}"
    recipe = small_recipe(unit, "trackers=[tensorboard]", "federation.evaluate_every=0")
    with pytest.raises(RecipeError, match="trackers: a round's numbers tell of single clients"):
        plan(recipe)


def test_a_tracker_that_breaks_in_a_run_does_not_stop_it(small_recipe, tmp_path, caplog):
    """What it lacks is in the run's own files, and the others have it too."""
    run = simulation.start(plan(small_recipe("trackers=[tensorboard]")), runs=tmp_path)

    def lose(event: Event) -> None:
        """Put a folder where the tracker's memory is to be written."""
        if isinstance(event, RoundStarted) and event.round == 2:
            memory = run.path / "trackers.json"
            memory.unlink()
            memory.mkdir()

    simulation.simulate(run, observe=lose)
    assert [record["round"] for record in run.records()] == [0, 1, 2, 3]
    assert [step for step, _ in tensorboard_curve(run.path, "eval/loss")] == [0, 1]
    assert len([text for text in caplog.messages if "tensorboard failed" in text]) == 1
