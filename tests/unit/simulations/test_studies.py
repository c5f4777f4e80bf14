"""The studies: what is kept of their trials, their attacks, and the pages that they write."""

import importlib
from xml.etree import ElementTree as ET

import pytest
import torch
from flwr.app import Message, RecordDict

from fedlora import products
from fedlora.adapter import AdapterUpdate
from fedlora.runtime.plan import plan
from fedlora.runtime.simulation import start
from simulations.studies.__main__ import STUDIES
from simulations.studies.attacks import ATTACKS, HostileGrid, Sight
from simulations.studies.page import write_page
from simulations.studies.trials import Outcome, Result, Trial, play_all, play_and_keep
from tests.strategies import make_state, make_update


def sent(attack: str, sight: Sight) -> AdapterUpdate:
    """Return what an attacker sends who sees this."""
    spec, examples = sight.own.spec, sight.own.num_examples
    return AdapterUpdate(spec=spec, values=ATTACKS[attack](sight), num_examples=examples)


def test_the_gauge_attack_changes_factors_but_no_product():
    """B is a hundred times what was trained and A a hundredth; B·A is what was trained."""
    received, own = make_state(seed=1), make_update(seed=2)
    sight = Sight(received=received, own=own, honest=(), clients=2)
    trained, forged = received.plus(own), received.plus(sent("gauge", sight))
    assert products.distance(trained, forged) < 1e-5 * products.norm(trained)
    for (tensor, honest), (_, hostile) in zip(trained.factors(), forged.factors(), strict=True):
        factor = 100 if tensor.factor == "B" else 0.01
        torch.testing.assert_close(hostile, factor * honest, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("attackers", "deviations"), [(3, 0.2104), (6, 0.7647)])
def test_alie_is_as_far_out_as_its_paper_says(attackers, deviations):
    """Of 15 clients, 5 or 2 honest ones are needed beside 3 or 6: quantiles of 7/12 and 7/9."""
    honest = [make_update(seed=seed) for seed in range(15 - attackers)]
    sight = Sight(received=make_state(), own=honest[0], honest=honest, clients=15)
    values = torch.stack([update.values for update in honest])
    expected = values.mean(dim=0) - deviations * values.std(dim=0)
    torch.testing.assert_close(sent("ALIE", sight).values, expected, rtol=1e-3, atol=1e-3)


def test_attackers_answer_last(small_recipe, tmp_path):
    """However the aggregator asks: an attacker has no reply while an honest client owes its own."""
    run = start(plan(small_recipe()), runs=tmp_path)
    grid = HostileGrid(run, attack=ATTACKS["none"], attackers=1)
    messages = [Message(RecordDict(), node, "query", group_id="1") for node in (2, 1)]
    hostile, honest = grid.push_messages(messages)
    replies = [len(list(grid.pull_messages([i]))) for i in (hostile, honest, hostile)]
    assert replies == [0, 1, 1]


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_writes_its_page(name, tmp_path):
    """One row a variant, a sentence at least, a well-formed plot, and a line for each trial."""
    study = importlib.import_module(f"simulations.studies.{name}")
    trials = study.trials(range(2))
    numbers = {"base": 5.0, "tail": 0.25, "bytes_up": 1e5, "bytes_down": 2e5, "error": 0.5}
    results = [
        Result(trial=trial, outcome=Outcome(**numbers, loss=4 - index / 1e3, seconds=1))
        for index, trial in enumerate(trials)
    ]
    page = study.page(results)
    text = write_page(page, results, name=name, command="this", docs=tmp_path).read_text()
    assert len({trial.key for trial in trials}) == len(trials)
    assert len(page.rows) == len({trial.variant for trial in trials})
    assert all(finding in text for finding in page.findings)
    assert ET.parse(tmp_path / f"{name}.svg").getroot().tag.endswith("svg")  # noqa: S314 - our own
    assert len((tmp_path / f"{name}.jsonl").read_text().splitlines()) == len(trials)


def test_a_trial_is_played_once(small_recipe, tmp_path):
    """Its outcome is kept and read again; in it, the gauge attack ruined the average of factors."""
    average = ("federation.method=average", "federation.rounds=2", "federation.max_update_norm=1e9")
    recipe, work = small_recipe(*average, "wire.codec=fp32"), tmp_path / "work"
    trial = Trial(variant="average", recipe=recipe, attack="gauge", attackers=1)
    work.mkdir()
    _, outcome = play_and_keep(trial, work=work)
    assert [path.name for path in work.iterdir()] == [f"{trial.key}.json"]
    assert play_all([trial], work=work, jobs=1) == [Result(trial=trial, outcome=outcome)]
    assert outcome.error > 1
    assert outcome.bytes_up > 0
