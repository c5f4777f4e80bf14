"""Classifiers from a CSV file to a release that PEFT loads."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

from fedlora.adapter import AdapterState
from fedlora.errors import AdapterError, FedloraError
from fedlora.methods import METHODS
from fedlora.recipe import Recipe
from fedlora.runtime import simulation
from fedlora.runtime.comparison import overall, read_comparison
from fedlora.runtime.plan import plan
from fedlora.runtime.run_folder import RunFolder
from fedlora.runtime.site.site import Site, resident_base
from fedlora.sections import EMBEDDED
from fedlora.training.base_model import resolve
from fedlora.training.base_model.network import quietly
from tests.classifiers import LABELS, classifier_recipe, write_base, write_csv


@pytest.fixture
def recipe_of(tmp_path):
    """Return a maker of recipes of two sites, with a CSV file each."""
    files = {site: write_csv(tmp_path / f"{site}.csv", 100, seed=n) for n, site in enumerate("ab")}

    def make(base_model: str, **keys) -> Recipe:
        federation = {"rounds": 3} | keys.pop("federation", {})
        return classifier_recipe(
            base_model=base_model,
            datasets=[{"path": str(path), "site": site} for site, path in files.items()],
            federation=federation,
            learning_rate=1e-2,
            lora_r=4,
            **keys,
        )

    return make


def play(recipe: Recipe, folder: Path) -> RunFolder:
    run = simulation.start(plan(recipe), runs=folder)
    simulation.simulate(run, observe=lambda _: None)
    return run


def ours(recipe: Recipe, state: AdapterState, batch) -> torch.Tensor:
    base = resident_base(recipe)
    base.load_adapter(state)
    base.model.eval()
    with torch.no_grad():
        return base.class_logits(batch.input_ids, batch.attention_mask)


@pytest.mark.parametrize("base_model", ["bert", "roberta", "distilbert", EMBEDDED])
def test_a_release_classifies_in_peft_as_it_did_here(recipe_of, tmp_path, base_model):
    """From labels in a CSV file over a few rounds to PEFT, on encoders and on a decoder."""
    path = base_model if base_model == EMBEDDED else write_base(tmp_path / "base", base_model)
    steps = 5 if base_model == EMBEDDED else 20
    run = play(recipe_of(str(path), federation={"local_steps": steps}), tmp_path / "runs")

    comparison = read_comparison(run)
    assert overall(comparison.federated).loss < overall(comparison.base).loss - 0.2
    site = Site.open(run.recipe(), "a")
    batch = next(site._batching.sorted_by_length(site.held_out_rows))
    state = run.load().adapter
    expected = ours(run.recipe(), state, batch)
    assert site.evaluate(state).means["label_accuracy"] >= 0.8
    assert run.records()[-1]["shares"]["a"]["label_accuracy"] == [
        (share := site.evaluate(state).shares["label_accuracy"]).total,
        share.count,
    ]
    assert "nats per text" in (text := run.report.read_text(encoding="utf-8"))
    assert "erplexity" not in text
    assert "Macro F1" in text

    with quietly():
        plain = AutoModelForSequenceClassification.from_pretrained(
            resolve(str(path), None), num_labels=len(LABELS), dtype=torch.float32
        )
    plain.config.pad_token_id = site.base.pad_token_id
    model = PeftModel.from_pretrained(plain, run.release).eval()
    with torch.no_grad():
        found = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_the_head(recipe_of, tmp_path, method):
    """Whatever is done with B·A, each tensor of the head is averaged in every round."""
    path = write_base(tmp_path / "base", "bert")
    recipe = recipe_of(str(path), federation={"method": method, "rounds": 2, "local_steps": 2})
    run = play(recipe, tmp_path / "runs")
    state = run.load().adapter
    beginning = dict(AdapterState.initial(state.spec, seed=recipe.seed).heads())
    for name, values in state.heads():
        assert not torch.equal(values, beginning[name])


def test_a_run_goes_on_from_a_classifiers_release(recipe_of, tmp_path):
    """With its head, value for value; labels in another order would mean other outputs."""
    path = str(write_base(tmp_path / "base", "roberta"))
    federation = {"rounds": 1, "local_steps": 4}
    first = play(recipe_of(path, federation=federation), tmp_path / "runs")
    after = {"federation": federation, "init_from": str(first.release)}
    run = play(recipe_of(path, **after), tmp_path / "runs")
    assert torch.equal(run.beginning().values, first.load().adapter.values)
    losses = [overall(read_comparison(each).federated).loss for each in (first, run)]
    assert losses[1] < losses[0]
    other = recipe_of(path, **after).model_copy(update={"labels": LABELS[::-1]})
    with pytest.raises(AdapterError, match=r"tells apart ham, spam, but the .* are spam, ham"):
        plan(other)


PRIVACY = {"unit": "example", "epsilon": 8, "delta": 1e-3, "records": 90, "evaluation_noise": 6}


@pytest.mark.parametrize("architecture", ["bert", "modernbert", "llama"])
def test_a_private_run_trains_the_head(recipe_of, tmp_path, architecture):
    """Its gradients are clipped and noised with B's; what is released says so."""
    path = write_base(tmp_path / "base", architecture)
    federation = {"rounds": 2, "local_steps": 2}
    run = play(recipe_of(str(path), federation=federation, privacy=PRIVACY), tmp_path / "runs")
    state, recipe = run.load().adapter, run.recipe()
    beginning = dict(AdapterState.initial(state.spec, seed=recipe.seed).factors())
    for tensor, values in state.factors():
        assert torch.equal(values, beginning[tensor]) == (tensor.factor == "A")
    records = run.records()
    assert all(record["refused"] == {} for record in records)
    assert all("train_loss" not in facts for facts in records[1]["folded"].values())


@pytest.mark.parametrize("codec", ["fp32", "bf16", "int8", "nf4"])
def test_a_head_travels_by_every_codec(recipe_of, tmp_path, codec):
    """Its vectors, too; with nf4 and freeze-a what rounding loses is kept for the next round."""
    path = write_base(tmp_path / "base", "roberta")
    federation = {"rounds": 2, "local_steps": 2, "method": "freeze-a"}
    wire = {"codec": codec, "compress": True}
    run = play(recipe_of(str(path), federation=federation, wire=wire), tmp_path / "runs")
    assert all(record["refused"] == {} for record in run.records())
    assert run.load().adapter.is_finite()


def test_a_run_with_an_unknown_label_does_not_start(recipe_of, tmp_path):
    """The row is named by file and line, and the recipe's labels are listed."""
    path = write_base(tmp_path / "base", "bert")
    recipe = recipe_of(str(path)).model_copy(update={"labels": ("ham", "eggs")})
    run = simulation.start(plan(recipe), runs=tmp_path / "runs")
    with pytest.raises(FedloraError, match=r"a\.csv, line \d+: the label is none of .* ham, eggs"):
        simulation.simulate(run, observe=lambda _: None)
