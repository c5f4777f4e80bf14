"""Whole runs under ``privacy.unit: client``: what is released, charged, and told of a client."""

import json
from collections.abc import Callable, Iterable
from html import unescape
from pathlib import Path

import pytest
import torch
from flwr.app import Message

from fedlora.adapter import AdapterUpdate
from fedlora.aggregation import new_aggregator
from fedlora.errors import BudgetError, RunError
from fedlora.privacy.accounting.calibration import epsilon
from fedlora.privacy.accounting.renyi_filter import RenyiFilter
from fedlora.privacy.ledger import Ledger
from fedlora.privacy.mechanism import KeyStream
from fedlora.recipe import Recipe
from fedlora.release.manifest import MANIFEST, Evaluation, Manifest
from fedlora.runtime import simulation
from fedlora.runtime.aggregator.server import serve
from fedlora.runtime.carriers.in_process import InProcessGrid
from fedlora.runtime.charges import readers_epsilon, round_charge
from fedlora.runtime.plan import plan
from fedlora.runtime.reports.report import write_report
from fedlora.runtime.run_folder import Checkpoint, RunFolder
from fedlora.runtime.site.client import app
from fedlora.runtime.site.memory import SIMULATED
from tests.faults.test_bad_clients import HostileGrid, altered_update, scaled

CLIP = 0.01
CLIENTS = (
    f"privacy={{unit: client, epsilon: 8, delta: 1e-3, clip_norm: {CLIP}}}",
    "federation={rounds: 2, local_steps: 1, evaluate_every: 0, server_momentum: 0}",
    "wire.codec=fp32",
    "simulation.reproducible_noise=true",
)
POISSON = ("federation.cohort_size=1", "federation.cohort_sampling=poisson")


def begin(recipe: Recipe, folder: Path) -> RunFolder:
    return simulation.start(plan(recipe), runs=folder)


def play(recipe: Recipe, folder: Path) -> RunFolder:
    run = begin(recipe, folder)
    simulation.simulate(run, observe=lambda _: None)
    return run


def ledger(run: RunFolder) -> Ledger:
    return Ledger(run.path.parent / "ledger.sqlite", new_filter=RenyiFilter)


def noise(run: RunFolder, number: int) -> torch.Tensor:
    """Return the noise of a round's sum."""
    recipe = run.recipe()
    charge, size = round_charge(recipe), run.spec().part("B").size
    draw = KeyStream.reproducible(f"{recipe.seed}/clients/{number}").gaussian(size)
    return draw * charge.noise_multiplier * charge.sensitivity


def released(run: RunFolder) -> torch.Tensor:
    """Return the B that all see, which was zero before the first round."""
    return run.load().adapter.part(run.spec().part("B")).values.double()


def drawn(seed: int, number: int, *, sites: int) -> list[int]:
    """Return which of the sites take part: all but one on average."""
    rate = (sites - 1) / sites
    return KeyStream.reproducible(f"{seed}/cohort/{number}").poisson_sample(sites, rate)


def seed_of(*sizes: int, sites: int = 2) -> str:
    """Return an override with a seed by which cohorts of these sizes are drawn."""

    def fits(seed: int) -> bool:
        cohorts = (drawn(seed, number, sites=sites) for number in range(1, len(sizes) + 1))
        return tuple(map(len, cohorts)) == sizes

    return f"seed={next(filter(fits, range(1000)))}"


@pytest.fixture(autouse=True)
def simulated(monkeypatch) -> None:
    """Let noise be reproducible, also where a test plays the aggregator's part alone."""
    monkeypatch.setenv(SIMULATED, "1")


@pytest.fixture
def three_sites(small_recipe, sites) -> Callable[..., Recipe]:
    """Return a recipe of the sites a, b and c, two of which take part on average."""
    path = sites["north"]
    datasets = ", ".join(f"{{path: {path}, site: {name}}}" for name in "abc")
    two = (f"datasets=[{datasets}]", "federation.cohort_size=2", POISSON[1])
    return lambda *overrides: small_recipe(*CLIENTS, *two, *overrides)


class FailingGrid(InProcessGrid):
    """Carries messages, but the replies of one node to training get lost."""

    def __init__(self, *, clients: int, lost: int) -> None:
        super().__init__(app, clients=clients)
        self.lost = lost

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        for reply in super().pull_messages(message_ids):
            trained = reply.metadata.message_type == "train"
            if not (trained and reply.metadata.src_node_id == self.lost):
                yield reply


def test_noise_is_charged_and_added_once(small_recipe, tmp_path):
    """What the readers see is the clipped sum over two, plus the noise of the charge."""
    run = play(small_recipe(*CLIENTS), tmp_path)
    assert run.recipe().federation.method == "freeze-a"
    rows = ledger(run).rows("clients-add-remove")
    assert [(row.number, row.charge) for row in rows] == [
        (number, round_charge(run.recipe())) for number in (1, 2)
    ]
    rest = released(run) - (noise(run, 1) + noise(run, 2)) / 2
    assert 0 < rest.norm() <= 2 * CLIP * (1 + 1e-3)  # of two rounds, each a mean of clipped updates


def test_one_client_moves_the_release_by_its_clip_norm_at_most(small_recipe, tmp_path):
    """Sending a million times its update; it is neither refused nor held against the other."""
    seen = []
    for factor in (1.0, 1e6, -1e6):
        run = begin(small_recipe(*CLIENTS, "federation.rounds=1"), tmp_path / f"{factor:g}")
        alter = altered_update(run, scaled(factor))
        serve(HostileGrid(app, clients=2, alter=alter), run.path, observe=lambda _: None)
        assert run.records()[-1]["refused"] == {}
        seen.append(released(run) * 2)  # the sum over two
    within = 1 + 1e-3  # the released adapter is float32
    assert float((seen[0] - seen[1]).norm()) <= 2 * CLIP * within
    assert 1.9 * CLIP <= float((seen[1] - seen[2]).norm()) <= 2 * CLIP * within


@pytest.mark.parametrize("method", ["average", "freeze-a", "alternate", "refresh"])
def test_a_method_sees_the_noised_mean_alone(small_recipe, tmp_path, monkeypatch, method):
    """One update a round, noise and all: what it makes of it is post-processing."""
    seen: list[AdapterUpdate] = []

    def spied(*arguments: object, **named: object):
        made = new_aggregator(*arguments, **named)
        add: Callable[..., None] = made.add

        def remember(update: AdapterUpdate, weight: float, *, share: float = 1.0) -> None:
            seen.append(update)
            add(update, weight, share=share)

        monkeypatch.setattr(made, "add", remember)
        return made

    monkeypatch.setattr("fedlora.runtime.aggregator.new_round.new_aggregator", spied)
    run = play(small_recipe(*CLIENTS, f"federation.method={method}"), tmp_path)
    assert [len(record["folded"]) for record in run.records()] == [0, 2, 2]
    assert len(seen) == 2
    charge = round_charge(run.recipe())
    for number, update in enumerate(seen, start=1):
        stream = KeyStream.reproducible(f"0/clients/{number}")
        deviation = charge.noise_multiplier * charge.sensitivity
        rest = update.values.double() * 2 - stream.gaussian(update.spec.size) * deviation
        assert 0 < rest.norm() <= 2 * CLIP * (1 + 1e-3)


def test_a_drawn_cohort_doubles_the_sensitivity_unless_each_is_drawn_alone(small_recipe):
    """Of a fixed size, another client takes the place of one that is left out."""
    everyone = round_charge(small_recipe(*CLIENTS))
    fixed = round_charge(small_recipe(*CLIENTS, "federation.cohort_size=1"))
    poisson = round_charge(small_recipe(*CLIENTS, *POISSON))
    assert (everyone.sensitivity, everyone.adjacency) == (CLIP, "add-remove")
    assert (fixed.sensitivity, fixed.adjacency) == (2 * CLIP, "replace-one")
    assert poisson == everyone
    for charge in (everyone, fixed, poisson):
        assert (charge.sampling_rate, charge.sampler) == (1.0, "all")
        assert epsilon([charge, charge], delta=1e-3) <= 8


def test_an_empty_cohort_releases_noise_alone(small_recipe, tmp_path):
    """Charged as any other: that nobody took part must not be told."""
    run = play(small_recipe(*CLIENTS, *POISSON, seed_of(0, 1)), tmp_path)
    assert [len(record["cohort"]) for record in run.records()] == [0, 0, 1]
    assert len(ledger(run).rows("clients-add-remove")) == 2
    rest = released(run) - noise(run, 1) - noise(run, 2)
    assert 0 < rest.norm() <= CLIP * (1 + 1e-3)  # over the one that is expected


def test_both_promises_are_reported_and_no_client(small_recipe, tmp_path):
    """The smaller ε is of readers; neither cohorts nor traffic, time or refusals are shown."""
    run = play(small_recipe(*CLIENTS, *POISSON, seed_of(1, 2)), tmp_path)
    report = run.report.read_text(encoding="utf-8")
    amplified = readers_epsilon(run.recipe())
    assert 0 < amplified < 8
    assert "Client-level differential privacy: ε is 8 at δ 0.001" in report
    assert "do not know who took part, ε is" in report
    assert f"{amplified:.2g}. Each round draws every site on its own" in report
    assert "whether some client's update was missing" in unescape(report)
    for told in ("updates folded", "Traffic", "Time", "Training loss by round", "refused"):
        assert told not in report
    folder = {path.name for path in run.release.iterdir()}
    adapter, about = {"adapter_config.json", "adapter_model.safetensors"}, {"README.md"}
    assert folder == adapter | about | {"manifest.json", "provenance.json"}
    manifest = Manifest.from_json((run.release / MANIFEST).read_bytes(), source="the release")
    assert (manifest.cohort.population, manifest.cohort.sites) == (2, None)
    assert manifest.evaluation == Evaluation()
    for record in run.records()[1:]:
        for facts in record["folded"].values():
            assert facts.keys() == {"num_examples", "weight", "share", "bytes"}


def test_a_drawn_client_that_does_not_answer_costs_the_smaller_promise(three_sites, tmp_path):
    """Its absence is no draw. The release is noised and divided as ever."""
    quick = ("federation.round_timeout=0.1", "federation.rounds=1", seed_of(3, sites=3))
    run = begin(three_sites(*quick), tmp_path)
    serve(FailingGrid(clients=3, lost=2), run.path, observe=lambda _: None)
    record = run.records()[-1]
    assert (len(record["cohort"]), sorted(record["folded"])) == (3, ["a", "c"])
    write_report(run)
    report = run.report.read_text(encoding="utf-8")
    assert "ε is no smaller against those who do not know who did" in report
    assert "federation.round_timeout" not in report
    assert float((released(run) * 2 - noise(run, 1)).norm()) <= 2 * CLIP * (1 + 1e-3)


def test_a_stopped_round_goes_on_with_the_cohort_that_was_drawn(three_sites, tmp_path):
    """Another draw would let those who do not answer choose the cohort; nothing is charged yet."""
    override = seed_of(2, sites=3)
    run = begin(
        three_sites("federation.round_timeout=0.1", "federation.rounds=1", override), tmp_path
    )
    cohort = ["abc"[index] for index in drawn(run.recipe().seed, 1, sites=3)]
    lost = FailingGrid(clients=3, lost="abc".index(cohort[0]) + 1)
    with pytest.raises(RunError, match="1 of 2 updates were accepted, but the quorum is 2"):
        serve(lost, run.path, observe=lambda _: None)
    assert json.loads(run.kept_cohort(1).read_text()) == cohort
    assert ledger(run).rows("clients-add-remove") == []
    other = ["abc"[(index + 1) % 3] for index in map("abc".index, cohort)]
    run.kept_cohort(1).write_text(json.dumps(sorted(other)))  # which is no draw of any stream
    serve(InProcessGrid(app, clients=3), run.path, observe=lambda _: None)
    assert run.records()[-1]["cohort"] == sorted(run.records()[-1]["folded"]) == sorted(other)
    assert not run.kept_cohort(1).exists()


def test_a_round_that_is_played_again_is_charged_again(small_recipe, tmp_path, monkeypatch):
    """It died between its charge and its checkpoint: nothing is refunded, and noise is fresh."""
    secure = "simulation.reproducible_noise=false"
    run = begin(small_recipe(*CLIENTS, secure, "federation.rounds=1"), tmp_path)
    ledger(run).open_account("clients-add-remove", epsilon=50.0, delta=1e-3)
    save = RunFolder.save
    seen: list[torch.Tensor] = []

    def dies(folder: RunFolder, checkpoint: Checkpoint) -> None:
        if checkpoint.round and not seen:
            seen.append(checkpoint.adapter.values.clone())
            raise KeyboardInterrupt
        save(folder, checkpoint)

    monkeypatch.setattr(RunFolder, "save", dies)
    with pytest.raises(KeyboardInterrupt):
        serve(InProcessGrid(app, clients=2), run.path, observe=lambda _: None)
    serve(InProcessGrid(app, clients=2), run.path, observe=lambda _: None)
    rows = ledger(run).rows("clients-add-remove")
    assert [(row.number, row.attempt) for row in rows] == [(1, 1), (1, 2)]
    assert not torch.equal(run.load().adapter.values, seen[0])


class Asked(InProcessGrid):
    """Carries messages; remembers their kinds."""

    def __init__(self) -> None:
        super().__init__(app, clients=2)
        self.kinds: set[str] = set()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        self.kinds.update(message.metadata.message_type for message in messages)
        return super().push_messages(messages)


@pytest.mark.parametrize(
    ("opened", "says"),
    [
        ("clients-add-remove", "asks for more than is left"),
        ("clients-replace-one", "account clients-add-remove, .* is not open, and a limit on"),
    ],
)
def test_a_budget_that_the_operator_opened_is_kept(small_recipe, tmp_path, opened, says):
    """Whatever the recipe asks for; the run ends before any client is asked to train.

    A limit of one account is none of another, which is not opened without one beside it.
    """
    run, grid = begin(small_recipe(*CLIENTS), tmp_path), Asked()
    ledger(run).open_account(opened, epsilon=2.0, delta=1e-3)
    with pytest.raises(BudgetError, match=says):
        serve(grid, run.path, observe=lambda _: None)
    assert grid.kinds == {"query"}
    assert ledger(run).rows(opened) == []
    assert ledger(run).balances().keys() == {opened}


def test_reproducible_noise_is_for_simulations_alone(small_recipe, tmp_path, monkeypatch):
    """An aggregator of sites that are not simulated reserves and releases nothing under it."""
    monkeypatch.delenv(SIMULATED)
    run = begin(small_recipe(*CLIENTS), tmp_path)
    with pytest.raises(BudgetError, match="protects nobody"):
        serve(InProcessGrid(app, clients=2), run.path, observe=lambda _: None)
    assert run.load().round == 0
    assert not (tmp_path / "ledger.sqlite").exists()
