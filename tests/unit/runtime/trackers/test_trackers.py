"""TensorBoard, MLflow and Weights & Biases themselves, on files of their own."""

import importlib.util
from pathlib import Path
from typing import get_args

import pytest

from fedlora.errors import RunError
from fedlora.runtime.trackers import Place, require_installed, tracking
from fedlora.sections import TrackerName
from tests.curves import CURVES, mlflow_run, wandb_records
from tests.tiny_models import tiny_recipe

NAMES = get_args(TrackerName)


def place(folder: Path, **environment: str) -> Place:
    recipe = tiny_recipe(name="letters", learning_rate=0.125)
    return Place(run="letters-1", recipe=recipe, folder=folder, environment=environment)


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_is_one_curve(tmp_path, name):
    """Stopped and begun again, in the same run of the tracker, without a point twice."""
    for steps in (range(2), range(4)):
        with tracking([name], place(tmp_path)) as curves:
            for step in steps:
                curves.log(step, {"eval/loss": 3.0 - step, "eval/loss/site-1": 9.0})
    assert CURVES[name](tmp_path, "eval/loss") == [(0, 3.0), (1, 2.0), (2, 1.0), (3, 0.0)]
    assert len(CURVES[name](tmp_path, "eval/loss/site-1")) == 4


def test_mlflow_knows_the_run_by_its_name_recipe_and_end(tmp_path):
    """Each key of the recipe is a parameter; the experiment is the recipe's name."""
    with tracking(["mlflow"], place(tmp_path)) as curves:
        curves.log(0, {"eval/loss": 1.0})
    client, run = mlflow_run(tmp_path)
    assert client.get_experiment(run.info.experiment_id).name == "letters"
    assert (run.info.run_name, run.info.status) == ("letters-1", "FINISHED")
    assert run.data.params["learning_rate"] == "0.125"
    assert run.data.params["federation.rounds"] == "8"


def test_mlflow_goes_where_its_variables_say(tmp_path):
    """Server and experiment; nothing is then in the run's folder but the note of how far it is."""
    uri, own = f"sqlite:///{tmp_path / 'shared.db'}", tmp_path / "own"
    own.mkdir()
    variables = {"MLFLOW_TRACKING_URI": uri, "MLFLOW_EXPERIMENT_NAME": "team"}
    with tracking(["mlflow"], place(own, **variables)) as curves:
        curves.log(0, {"eval/loss": 1.0})
    client, run = mlflow_run(tmp_path, uri)
    assert client.get_experiment(run.info.experiment_id).name == "team"
    assert [path.name for path in own.iterdir()] == ["trackers.json"]


def test_wandb_keeps_the_run_and_nothing_of_the_host(tmp_path):
    """Project, name and recipe are there; host, working folder and program are not."""
    with tracking(["wandb"], place(tmp_path, WANDB_PROJECT="team")) as curves:
        curves.log(0, {"eval/loss": 1.0})
    records = wandb_records(tmp_path)
    [run] = [record.run for record in records if record.HasField("run")]
    config = {update.key: update.value_json for update in run.config.update}
    assert (run.project, run.display_name) == ("team", "letters-1")
    assert config["learning_rate"] == "0.125"
    assert run.host == ""
    written = b"".join(record.SerializeToString() for record in records)
    assert str(Path.cwd()).encode() not in written
    assert not any(path.is_file() for path in tmp_path.rglob("files/**/*"))


@pytest.mark.parametrize("name", NAMES)
def test_without_variables_nothing_is_sent(tmp_path, monkeypatch, name):
    """Whatever this process has: a site's trackers are given none, and keep to their folder."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    with tracking([name], place(tmp_path)) as curves:
        curves.log(0, {"train/loss": 1.0})
    assert CURVES[name](tmp_path, "train/loss") == [(0, 1.0)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "variables"),
    [
        ("mlflow", {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}),
        ("wandb", {"WANDB_MODE": "online", "WANDB_API_KEY": "0" * 40}),
    ],
)
def test_a_server_that_does_not_answer_stops_nothing(
    tmp_path, monkeypatch, caplog, name, variables
):
    """It is said once, within the time that a round can spare."""
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    with tracking([name], place(tmp_path, **variables)) as curves:
        curves.log(0, {"train/loss": 1.0})
    said = [text for text in caplog.messages if f"The tracker {name} failed" in text]
    assert len(said) == 1


def test_a_library_that_is_not_installed_is_named(monkeypatch):
    """With what installs it, before anything is imported."""
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "wandb" else found(n))
    require_installed(["tensorboard", "mlflow"])
    with pytest.raises(RunError, match=r"wandb is not installed: pip install 'fedlora\[wandb\]'"):
        require_installed(NAMES)
