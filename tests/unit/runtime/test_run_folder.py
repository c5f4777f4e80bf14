"""A run's folder: what is written is read back, and a stop anywhere leaves a run to go on with."""

import errno
import os
import re
from pathlib import Path

import pytest
import torch

from fedlora.adapter import AdapterState
from fedlora.errors import RunError, StorageError
from fedlora.recipe import Recipe
from fedlora.runtime import run_folder
from fedlora.runtime.run_folder import Checkpoint, RunFolder
from tests.strategies import make_spec, make_state

RECIPE = Recipe.from_yaml("{name: demo, seed: 5, datasets: [{path: x}], privacy: {unit: none}}")
SPEC = make_spec()


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A new run."""
    return RunFolder.create(RECIPE, SPEC, data={}, runs=tmp_path / "runs")


def checkpoint(number: int, **changes: object) -> Checkpoint:
    facts = {
        "round": number,
        "adapter": make_state(seed=number),
        "median_norm": 0.1 + number,
        "record": {"round": number, "cohort": ["a"], "loss": 1 / 3},
    }
    return Checkpoint(**facts | changes)


def saved(run: RunFolder, *numbers: int) -> RunFolder:
    for number in numbers:
        run.save(checkpoint(number))
    return run


def everything(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


# A new run


def test_a_new_run_holds_recipe_and_specification(run):
    """Both read back equal; the run is named after recipe and time."""
    again = RunFolder.open(run.path)
    assert again.recipe() == RECIPE
    assert again.spec() == SPEC
    assert re.fullmatch(r"demo-\d{8}-\d{6}", run.name)
    assert sorted(everything(run.path)) == ["data.json", "recipe.yaml", "spec.json"]


def test_runs_of_the_same_second_get_different_folders(tmp_path, monkeypatch):
    """No run is written over another."""

    class Stopped(run_folder.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 1, 2, 3, 4, 5, tzinfo=tz)

    monkeypatch.setattr(run_folder, "datetime", Stopped)
    runs = [RunFolder.create(RECIPE, SPEC, data={}, runs=tmp_path) for _ in range(3)]
    names = ["demo-20260102-030405", "demo-20260102-030405-2", "demo-20260102-030405-3"]
    assert [run.name for run in runs] == names
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert all(RunFolder.open(run.path).recipe() == RECIPE for run in runs)


def test_a_run_that_cannot_be_made_leaves_nothing(tmp_path, small_disk):
    """A full disk: a clear error, and no folder that looks like a run."""
    with small_disk(10), pytest.raises(StorageError, match=r"demo-.*cannot be written"):
        RunFolder.create(RECIPE, SPEC, data={}, runs=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    """Here a file stands where the folder of runs should be."""
    (tmp_path / "runs").write_text("")
    with pytest.raises(StorageError, match="runs: cannot be written"):
        RunFolder.create(RECIPE, SPEC, data={}, runs=tmp_path / "runs")


@pytest.mark.parametrize("lost", ["recipe.yaml", "spec.json", "both"])
def test_what_is_no_run_folder_is_refused(run, lost):
    """The message says what is missing and what to name."""
    for name in ("recipe.yaml", "spec.json") if lost == "both" else (lost,):
        (run.path / name).unlink()
    with pytest.raises(RunError, match="this is not a run folder"):
        RunFolder.open(run.path)
    with pytest.raises(RunError, match="this is not a run folder"):
        RunFolder.open(run.path / "nowhere")


# Checkpoints


def test_a_run_begins_with_the_adapter_of_its_seed(run):
    """Before the first round there is nothing to load but the beginning."""
    start = run.load()
    initial = AdapterState.initial(SPEC, seed=5)
    assert (start.round, start.median_norm, start.record) == (0, None, None)
    assert torch.equal(initial.values, start.adapter.values)
    assert run.records() == []


def test_a_checkpoint_comes_back_bit_for_bit(run):
    """Adapter, optimiser, median norm and record."""
    values = make_state(seed=9).values
    values[:3] = torch.tensor([-0.0, 1e-45, torch.finfo(torch.float32).max])
    optimizer = {"momentum": make_state(seed=1).values, "step": torch.tensor(7)}
    before = checkpoint(
        4, adapter=AdapterState(spec=SPEC, values=values), optimizer=optimizer, median_norm=1 / 3
    )
    run.save(before)
    after = RunFolder.open(run.path).load()
    assert (after.round, after.median_norm, after.record) == (4, 1 / 3, before.record)
    assert after.adapter.values.numpy().tobytes() == values.numpy().tobytes()
    assert after.adapter.spec == SPEC
    assert after.optimizer.keys() == optimizer.keys()
    assert all(torch.equal(after.optimizer[key], value) for key, value in optimizer.items())
    assert after.optimizer["step"].dtype == torch.int64


def test_the_last_checkpoint_is_loaded_and_the_last_two_are_kept(run):
    """Space does not grow with the rounds; records do."""
    saved(run, 0, 1, 2, 3)
    assert run.load().round == 3
    kept = sorted(path.name for path in (run.path / "checkpoints").iterdir())
    assert kept == ["round-0002", "round-0003"]
    assert [record["round"] for record in run.records()] == [0, 1, 2, 3]


def test_rounds_are_counted_past_their_digits(run):
    """Round 10000 is later than round 9999."""
    saved(run, 9999, 10_000)
    assert run.load().round == 10_000
    saved(run, 10_001)
    assert run.load().round == 10_001


def test_a_saved_round_empties_the_spool(run):
    """What was folded is in the checkpoint."""
    run.spool.mkdir()
    (run.spool / "a").write_bytes(b"x")
    saved(run, 1)
    assert not run.spool.exists()


# After a stop


def test_a_record_that_was_not_written_is_mended(run):
    """The process died after the checkpoint and before its record."""
    saved(run, 0, 1)
    lines = (run.path / "rounds.jsonl").read_text()
    saved(run, 2)
    whole = (run.path / "rounds.jsonl").read_text()
    (run.path / "rounds.jsonl").write_text(lines)
    assert RunFolder.open(run.path).load().round == 2
    assert (run.path / "rounds.jsonl").read_text() == whole


def test_records_beyond_the_last_checkpoint_are_dropped(run):
    """The last checkpoint was lost and deleted; its round is played, and recorded, again."""
    saved(run, 0, 1, 2)
    (run.path / "checkpoints" / "round-0002" / "state.json").unlink()
    with pytest.raises(RunError, match="damaged"):
        run.load()
    for path in (run.path / "checkpoints" / "round-0002").iterdir():
        path.unlink()
    (run.path / "checkpoints" / "round-0002").rmdir()
    assert run.load().round == 1
    assert [record["round"] for record in run.records()] == [0, 1]
    saved(run, 2)
    assert [record["round"] for record in run.records()] == [0, 1, 2]


def test_loading_changes_nothing_else(run):
    """A run may be looked at as often as one likes."""
    saved(run, 0, 1)
    before = everything(run.path)
    run.load()
    run.load()
    assert before == everything(run.path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("state.safetensors", b""),
        ("state.safetensors", b"rubbish"),
        ("state.safetensors", None),
        ("state.json", b""),
        ("state.json", b"{}"),
        ("state.json", b"[]"),
        ("state.json", b"\xff"),
    ],
)
def test_a_damaged_checkpoint_is_named(run, name, content):
    """The message says which, and that the one before it is there."""
    saved(run, 1, 2)
    path = run.path / "checkpoints" / "round-0002" / name
    if content is None:
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.write_bytes(content)
    says = "round-0002: the checkpoint is damaged .* Delete this folder to resume from the one"
    with pytest.raises(RunError, match=says):
        run.load()


def test_a_checkpoint_of_another_adapter_is_named(run):
    """The specification decides how many values there are."""
    run.save(checkpoint(1, adapter=make_state(make_spec(rank=3))))
    with pytest.raises(RunError, match=r"round-0001: the checkpoint is damaged .*float32 values"):
        run.load()


def test_what_a_killed_process_left_is_not_loaded(run):
    """A checkpoint that was being written has another name."""
    saved(run, 1)
    half = run.path / "checkpoints" / ".round-0002.x7d"
    half.mkdir()
    (half / "state.json").write_text("{")
    assert run.load().round == 1


# A disk that takes no more


@pytest.mark.parametrize("size", [10, 200, 500])
def test_a_full_disk_leaves_the_last_checkpoint(run, small_disk, size):
    """A clear error, the state before as it was, and nothing half-written beside it."""
    saved(run, 0, 1)
    before = everything(run.path)
    huge = checkpoint(2, record={"round": 2, "cohort": ["a" * 600]})
    with small_disk(size), pytest.raises(StorageError, match=r"round-0002: cannot be written"):
        run.save(huge)
    assert before == everything(run.path)
    assert torch.equal(checkpoint(1).adapter.values, run.load().adapter.values)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failing_step_leaves_the_last_checkpoint(run, monkeypatch, step):
    """The same when bringing it to disk, or to its place, fails."""
    saved(run, 0, 1)
    before = everything(run.path)

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(StorageError, match=r"cannot be written \(No space left on device\)"):
        run.save(checkpoint(2))
    monkeypatch.undo()
    assert before == everything(run.path)
    assert run.load().round == 1


def test_a_disk_that_fills_between_checkpoint_and_record_loses_neither(run, small_disk):
    """The round is complete: going on mends its record and keeps the ones before."""
    many = [checkpoint(n, record={"round": n, "note": "x" * 400}) for n in range(4)]
    for one in many[:3]:
        run.save(one)
    with small_disk(1500), pytest.raises(StorageError, match=r"rounds.jsonl: cannot be written"):
        run.save(many[3])
    assert [record["round"] for record in run.records()] == [0, 1, 2]
    assert run.load().round == 3
    assert [record["round"] for record in run.records()] == [0, 1, 2, 3]
    assert not [name for name in everything(run.path) if "/." in name or name.startswith(".")]


# Baselines


def test_baselines_come_back(run):
    """Written as far as they have come, so that a stopped comparison goes on."""
    assert run.baselines() == {}
    baselines = {"a": {"a": [1 / 3, 7.0], "b": [2.5, 9.0]}, "all data pooled": {"a": [1.0, 2.0]}}
    run.keep_baselines(baselines)
    assert run.baselines() == baselines
