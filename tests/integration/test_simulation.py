"""A whole federated run: what it writes, what it reaches, how it goes on after a stop."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from flwr.app import Context, RecordDict
from peft import PeftModel
from transformers import AutoModelForCausalLM

from client.app import app as client_app
from fedlora import products
from fedlora.adapter import AdapterState
from fedlora.data import partition
from fedlora.errors import RunError
from fedlora.runtime import simulation
from fedlora.runtime.carriers.in_process import InProcessGrid
from fedlora.runtime.comparison import overall, read_comparison
from fedlora.runtime.events import Event, RoundFinished, RoundStarted, UpdateSettled
from fedlora.runtime.plan import plan
from fedlora.runtime.run_folder import RunFolder
from fedlora.runtime.site.site import Site
from fedlora.training.base_model import resolve
from server.app import app as server_app


def play(recipe, folder: Path, *, observe=lambda _: None) -> RunFolder:
    run = simulation.start(plan(recipe), runs=folder)
    simulation.simulate(run, observe=observe)
    return run


def adapter_bytes(run: RunFolder) -> bytes:
    return (run.release / "adapter_model.safetensors").read_bytes()


def test_a_run_lowers_every_sites_held_out_loss(small_recipe, tmp_path):
    """The federated adapter beats the base at each site and overall."""
    run = play(small_recipe("federation.local_steps=5"), tmp_path)
    comparison = read_comparison(run)
    for site, before in comparison.base.items():
        assert comparison.federated[site].loss < before.loss
    assert overall(comparison.federated).loss < overall(comparison.base).loss - 0.1


def test_a_run_folder_holds_all_that_is_promised(small_recipe, tmp_path):
    """Recipe, records, checkpoints, report and release are there; the spool is empty."""
    run = play(small_recipe(), tmp_path)
    names = {path.name for path in run.path.iterdir()}
    expected = {"recipe.yaml", "spec.json", "data.json", "rounds.jsonl"}
    expected |= {"checkpoints", "report.html", "release"}
    assert expected == names
    records = [json.loads(line) for line in (run.path / "rounds.jsonl").read_text().splitlines()]
    assert [record["round"] for record in records] == [0, 1, 2, 3]
    assert ["north", "south"] == records[1]["cohort"] == sorted(records[1]["folded"])


def test_the_release_is_a_peft_folder(small_recipe, tmp_path):
    """PEFT loads the release onto the base, and the base answers differently with it."""
    run = play(small_recipe(), tmp_path)
    base = AutoModelForCausalLM.from_pretrained(resolve("embedded", None), dtype=torch.float32)
    ids = torch.tensor([[5, 6, 7, 8]])
    before = base(input_ids=ids).logits
    after = PeftModel.from_pretrained(base, run.release)(input_ids=ids).logits
    assert not torch.allclose(before, after, atol=1e-3)


def test_equal_recipes_give_equal_adapters(small_recipe, tmp_path):
    """Two runs of one recipe end in the same bytes."""
    first = play(small_recipe("lora_dropout=0.1"), tmp_path / "a")
    second = play(small_recipe("lora_dropout=0.1"), tmp_path / "b")
    assert adapter_bytes(first) == adapter_bytes(second)


class Stop:
    """An observer that presses Ctrl-C at the ``count``-th event of a kind."""

    def __init__(self, kind: type, count: int) -> None:
        self.kind, self.left = kind, count

    def __call__(self, event: Event) -> None:
        self.left -= isinstance(event, self.kind)
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        (RoundStarted, 1),
        (RoundFinished, 1),
        (UpdateSettled, 1),
        (UpdateSettled, 3),
        (RoundFinished, 3),
    ],
)
def test_a_stopped_run_goes_on_to_the_same_adapter(small_recipe, tmp_path, kind, count):
    """Wherever it was stopped, a resumed run ends in the bytes of an uninterrupted one."""
    whole = play(small_recipe(), tmp_path / "whole")
    run = simulation.start(plan(small_recipe()), runs=tmp_path / "stopped")
    with pytest.raises(KeyboardInterrupt):
        simulation.simulate(run, observe=Stop(kind, count))
    simulation.simulate(RunFolder.open(run.path), observe=lambda _: None)
    assert adapter_bytes(whole) == adapter_bytes(run)
    # A resumed round sends less, because what is spooled is not asked for again.
    strip = {"seconds": None, "bytes_down": None}
    assert [r | strip for r in whole.records()] == [r | strip for r in run.records()]


def test_a_resumed_round_does_not_ask_a_spooled_client_again(small_recipe, tmp_path):
    """An update that was accepted before the stop is folded from the spool."""
    run = simulation.start(plan(small_recipe()), runs=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        simulation.simulate(run, observe=Stop(UpdateSettled, 1))
    settled: list[str] = []

    def watch(event: Event) -> None:
        if isinstance(event, UpdateSettled) and event.round == 1 and event.train_loss is not None:
            settled.append(event.site)

    simulation.simulate(run, observe=watch)
    assert settled == ["south"]
    assert {"north", "south"} == set(run.records()[1]["folded"])


def test_a_complete_run_is_left_as_it_is(small_recipe, tmp_path):
    """Resuming a complete run plays no round and changes no adapter."""
    run = play(small_recipe(), tmp_path)
    before, started = adapter_bytes(run), []
    simulation.simulate(
        run, observe=lambda e: started.append(e) if isinstance(e, RoundStarted) else None
    )
    assert started == []
    assert before == adapter_bytes(run)


def test_changed_data_is_not_resumed_on(small_recipe, sites, tmp_path):
    """A resumed run would not be the run that was begun: it is refused, with the site's name."""
    run = play(small_recipe(), tmp_path)
    assert simulation.resume(run.path).name == run.name
    with sites["south"].open("a") as file:
        file.write('\n{"prompt": "What is new?", "completion": "A row."}')
    # A process reads a dataset once; only a new one sees the change.
    partition._read.cache_clear()
    with pytest.raises(RunError, match="data of south has changed"):
        simulation.resume(run.path)


def test_a_run_goes_on_from_another_working_folder(small_recipe, sites, tmp_path, monkeypatch):
    """The run folder keeps absolute paths, whatever the recipe said."""
    monkeypatch.chdir(tmp_path)
    relative = f"datasets=[{{path: {sites['north'].name}}}]"
    run = simulation.start(plan(small_recipe(relative, "federation.sites=2")), runs=tmp_path)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    simulation.simulate(simulation.resume(run.path), observe=lambda _: None)
    assert run.is_published


def test_a_site_that_cannot_evaluate_is_named(small_recipe, tmp_path, monkeypatch):
    """Its reason is on record, the other sites' losses stand, and means are over those alone."""
    evaluate = Site.evaluate

    def failing(self, state):
        if self.name == "south":
            raise RunError("out of memory")
        return evaluate(self, state)

    monkeypatch.setattr(Site, "evaluate", failing)
    run = play(small_recipe("federation.rounds=1"), tmp_path)
    for record in run.records():
        assert "out of memory" in record["unmeasured"]["south"]
    assert list(read_comparison(run).federated) == ["north"]


def test_slow_clients_are_all_waited_for_in_one_process(small_recipe, tmp_path):
    """The round's timeout is for clients that are silent, not for a queue of busy ones."""
    run = play(small_recipe("federation.round_timeout=1e-9"), tmp_path)
    assert all(not record["refused"] for record in run.records())


def test_a_cohort_is_drawn_anew_each_round(small_recipe, tmp_path):
    """With cohort_size 1 of 2, only the drawn client trains, and over rounds both are drawn."""
    run = play(small_recipe("federation.cohort_size=1", "federation.rounds=6"), tmp_path)
    cohorts = [record["cohort"] for record in run.records()[1:]]
    assert all(len(cohort) == 1 for cohort in cohorts)
    assert {"north", "south"} == {site for cohort in cohorts for site in cohort}


def test_pooled_rows_are_dealt_out_among_the_sites(small_recipe, sites, tmp_path):
    """Datasets without a site make as many sites as asked for."""
    data = f"datasets=[{{path: {sites['north']}}}, {{path: {sites['south']}}}]"
    run = play(small_recipe(data, "federation.sites=3", "federation.rounds=1"), tmp_path)
    assert run.records()[1]["cohort"] == ["site-1", "site-2", "site-3"]


def test_the_comparison_trains_the_baselines(small_recipe, tmp_path):
    """With simulation.compare, each site alone and all data pooled are measured at every site."""
    run = play(small_recipe("simulation.compare=true", "federation.rounds=2"), tmp_path)
    comparison = read_comparison(run)
    assert {"north", "south"} == set(comparison.alone)
    assert comparison.pooled is not None
    assert overall(comparison.pooled).loss < overall(comparison.base).loss


def test_a_federation_of_one_equals_training_alone(small_recipe, tmp_path):
    """One site, one round: the federated adapter has the products of plain local training."""
    one = small_recipe(
        "federation.cohort_size=1",
        "federation.rounds=1",
        "federation.local_steps=4",
        "wire.codec=fp32",
    )
    run = play(one, tmp_path)
    (site,) = run.records()[1]["cohort"]
    initial = AdapterState.initial(run.spec(), seed=one.seed)
    alone = Site.open(one, site).train_round(initial, number=1).state
    apart = products.distance(run.load().adapter, alone)
    assert apart < 1e-5 * products.norm(alone)


def test_a_qlora_round_runs_on_the_cpu(small_recipe, tmp_path):
    """With the base in NF4 the sites train and the loss falls."""
    run = play(small_recipe("adapter=qlora", "federation.local_steps=5"), tmp_path)
    comparison = read_comparison(run)
    assert overall(comparison.federated).loss < overall(comparison.base).loss - 0.1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_qlora_round_runs_on_a_gpu(small_recipe, tmp_path):
    """As on the CPU."""
    recipe = small_recipe("adapter=qlora", "device=cuda", "bf16=auto", "federation.local_steps=5")
    comparison = read_comparison(play(recipe, tmp_path))
    assert overall(comparison.federated).loss < overall(comparison.base).loss - 0.1


def test_the_bundled_apps_play_a_run_folder(small_recipe, tmp_path):
    """The Flower apps as they are bundled do what the simulation does."""
    whole = play(small_recipe(), tmp_path / "whole")
    run = simulation.start(plan(small_recipe()), runs=tmp_path / "bundled")
    config = {"run": str(run.path)}
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=config)
    server_app(InProcessGrid(client_app, clients=2), context)
    assert adapter_bytes(whole) == adapter_bytes(run)


@pytest.mark.slow
@pytest.mark.ray
def test_the_ray_engine_plays_the_same_rounds(small_recipe, tmp_path):
    """On Flower's Ray simulation the run reaches what it reaches in one process."""
    pytest.importorskip("ray", reason="needs the ray extra")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(small_recipe().to_yaml())
    command = [sys.executable, "-m", "fedlora", "simulate", recipe, "--engine", "ray"]
    subprocess.run([*command, "--runs", tmp_path / "there"], check=True)  # Ray's process is its own
    there = RunFolder.open(next((tmp_path / "there").glob("small-*")))
    here = play(small_recipe(), tmp_path / "here")
    torch.testing.assert_close(
        here.load().adapter.values, there.load().adapter.values, atol=1e-4, rtol=1e-3
    )
