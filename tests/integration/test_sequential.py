"""One training after another: a run begins with the adapter of a release, or of any PEFT folder."""

import shutil
from pathlib import Path

import pytest
import torch

from fedlora.adapter import AdapterState
from fedlora.errors import AdapterError, PolicyError, ReleaseError, RunError
from fedlora.peft_folder import write_peft_folder
from fedlora.recipe import Recipe
from fedlora.release.card import CARD
from fedlora.release.manifest import MANIFEST, Manifest
from fedlora.release.provenance import PROVENANCE
from fedlora.runtime import simulation
from fedlora.runtime.comparison import overall, read_comparison
from fedlora.runtime.plan import plan
from fedlora.runtime.run_folder import RunFolder

SHORT = "federation={rounds: 1, local_steps: 4}"


def play(recipe: Recipe, runs: Path) -> RunFolder:
    run = simulation.start(plan(recipe), runs=runs)
    simulation.simulate(run, observe=lambda _: None)
    return run


def manifest_of(folder: Path) -> Manifest:
    return Manifest.from_json((folder / MANIFEST).read_bytes(), source=str(folder))


@pytest.fixture
def first(small_recipe, tmp_path) -> RunFolder:
    """Return a run that is complete."""
    return play(small_recipe(SHORT), tmp_path / "runs")


def test_a_run_goes_on_from_a_release(first, small_recipe, tmp_path):
    """To the bit; what is measured before its first round is the base; the release is on record."""
    recipe = small_recipe(SHORT, f"init_from={first.release}", "simulation.compare=true")
    run = simulation.start(plan(recipe), runs=tmp_path / "runs")
    assert torch.equal(run.load().adapter.values, first.load().adapter.values)
    simulation.simulate(run, observe=lambda _: None)
    evaluations = [each.records()[0]["evaluation"] for each in (first, run)]
    assert evaluations[0] == evaluations[1]
    before, after = read_comparison(first), read_comparison(run)
    assert overall(after.federated).loss < overall(before.federated).loss
    assert overall(after.pooled).loss < overall(before.federated).loss
    release = manifest_of(first.release).release
    assert manifest_of(run.release).origin.began_with == release
    assert release in (run.release / CARD).read_text()
    assert release in (run.release / PROVENANCE).read_text()


def test_a_run_goes_on_from_any_adapter(first, small_recipe, tmp_path):
    """One that PEFT would load: its values, and no release to name."""
    folder = tmp_path / "adapter"
    write_peft_folder(first.load().adapter, folder)
    run = simulation.start(plan(small_recipe(f"init_from={folder}")), runs=tmp_path / "runs")
    assert torch.equal(run.load().adapter.values, first.load().adapter.values)
    assert run.recipe().lock.beginning.release is None


def test_a_run_has_its_own_copy(first, small_recipe, tmp_path):
    """It can be resumed when the folder has gone; without its copy it does not begin elsewhere."""
    folder = tmp_path / "release"
    shutil.copytree(first.release, folder)
    run = simulation.start(plan(small_recipe(SHORT, f"init_from={folder}")), runs=tmp_path / "runs")
    expected = run.load().adapter
    shutil.rmtree(folder)
    resumed = simulation.resume(run.path)
    assert torch.equal(resumed.load().adapter.values, expected.values)
    (run.path / "beginning.safetensors").unlink()
    with pytest.raises(RunError, match="begins with cannot be read"):
        resumed.load()


@pytest.mark.parametrize(
    "change", ["lora_r=4", "lora_alpha=32", "lora_target_modules=[q_proj]", "lora_r=16"]
)
def test_an_adapter_that_does_not_fit_is_refused(first, small_recipe, change):
    """Before anything is written; the message says what to set."""
    with pytest.raises(AdapterError, match=r"init_from: .*does not fit .*set lora_r, lora_alpha"):
        plan(small_recipe(f"init_from={first.release}", change))


def test_a_release_of_another_base_is_refused(first, small_recipe, tmp_path):
    """By the digest in its manifest: shapes alone would fit."""
    folder = tmp_path / "release"
    shutil.copytree(first.release, folder)
    manifest = manifest_of(folder)
    base = manifest.base.model_copy(update={"digest": "ab" * 32, "name": "org/other"})
    (folder / MANIFEST).write_bytes(manifest.model_copy(update={"base": base}).to_json())
    with pytest.raises(AdapterError, match="belongs on org/other, abababababab, but the recipe's"):
        plan(small_recipe(f"init_from={folder}"))


def test_a_release_that_was_changed_is_refused(first, small_recipe, tmp_path):
    """One byte is enough, also of what is not read."""
    folder = tmp_path / "release"
    shutil.copytree(first.release, folder)
    with (folder / CARD).open("a") as file:
        file.write("x")
    with pytest.raises(ReleaseError, match="this is not what was published"):
        plan(small_recipe(f"init_from={folder}"))
    with pytest.raises(AdapterError, match="configuration was expected"):
        plan(small_recipe("init_from=nowhere"))


def test_a_locked_recipe_begins_with_what_it_was_locked_to(first, small_recipe, tmp_path):
    """Another adapter in the same folder is refused when the run is to begin."""
    folder = tmp_path / "adapter"
    write_peft_folder(first.load().adapter, folder)
    run = simulation.start(plan(small_recipe(f"init_from={folder}")), runs=tmp_path / "runs")
    other = AdapterState.initial(run.spec(), seed=9)
    shutil.rmtree(folder)
    write_peft_folder(other, folder)
    with pytest.raises(PolicyError, match="not those of the adapter that the recipe was locked to"):
        RunFolder.create(run.recipe(), run.spec(), data={}, runs=tmp_path / "others")
