"""Whole runs under ``privacy.secure_aggregation``: what is summed, who is lost, what is told."""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pytest
import torch
from flwr.app import Array, ArrayRecord, Message

from fedlora.errors import RecipeError, RunError
from fedlora.privacy.accounting.renyi_filter import RenyiFilter
from fedlora.privacy.ledger import DEFAULT_ACCOUNT, Ledger
from fedlora.recipe import Recipe
from fedlora.runtime import simulation
from fedlora.runtime.aggregator.server import serve
from fedlora.runtime.carriers.in_process import InProcessGrid
from fedlora.runtime.charges import round_charge
from fedlora.runtime.comparison import overall, read_comparison
from fedlora.runtime.fixed_point import fixed_point_of
from fedlora.runtime.plan import plan
from fedlora.runtime.run_folder import RunFolder
from fedlora.runtime.secure_traffic import talk_of
from fedlora.runtime.simulation import sites_in
from fedlora.runtime.site import secure_sum
from fedlora.runtime.site.client import app

SECURE = "privacy={unit: none, secure_aggregation: true}"
PLAIN = ("federation.method=freeze-a", "federation.evaluate_every=0", "wire.codec=fp32")
ADDING = ("federation.server_momentum=0",)

Answer = Callable[[Message], Message | None]
"""What becomes of a reply; none if it is lost."""


def lost(_reply: Message) -> None:
    """Lose a reply."""


def garbled(reply: Message) -> Message:
    """Turn a reply's payload into something else of the same length."""
    payload = bytes(len(reply.content.array_records["adapter"]["adapter"].data))
    array = Array(dtype="uint8", shape=(len(payload),), stype="fedlora.wire.v1", data=payload)
    reply.content["adapter"] = ArrayRecord({"adapter": array})
    return reply


class LossyGrid(InProcessGrid):
    """Carries messages, but what some sites answer to some stages meets a fate of its own."""

    def __init__(self, recipe: Recipe, fates: Mapping[tuple[str, str], Answer]) -> None:
        super().__init__(app, clients=len(recipe.site_names))
        self.sites = recipe.site_names
        self.fates = fates

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        for reply in super().pull_messages(message_ids):
            site = self.sites[reply.metadata.src_node_id - 1]
            fate = self.fates.get((site, reply.metadata.message_type), lambda reply: reply)
            if (answer := fate(reply)) is not None:
                yield answer


@pytest.fixture
def four_sites(small_recipe, sites) -> Callable[..., Recipe]:
    """Return a recipe of the sites a, b, c and d, three of which open a sum."""
    datasets = ", ".join(
        f"{{path: {sites['north' if name in 'ab' else 'south']}, site: {name}}}" for name in "abcd"
    )
    return lambda *overrides: small_recipe(
        *PLAIN,
        *ADDING,
        f"datasets=[{datasets}]",
        "federation.rounds=1",
        "federation.stage_timeout=0.3",
        "federation.round_timeout=5",
        *overrides,
    )


def play(
    recipe: Recipe, folder: Path, fates: Mapping[tuple[str, str], Answer] | None = None
) -> RunFolder:
    run = simulation.start(plan(recipe), runs=folder)
    resume(run, fates)
    return run


def resume(run: RunFolder, fates: Mapping[tuple[str, str], Answer] | None = None) -> None:
    with sites_in(str(run.path / "sites")):
        grid = LossyGrid(run.recipe(), fates or {})
        serve(grid, run.path, observe=lambda _: None)


def trained(run: RunFolder) -> torch.Tensor:
    return run.load().adapter.values


@pytest.mark.parametrize("weighting", ["examples", "uniform"])
@pytest.mark.parametrize("method", ["freeze-a", "alternate", "average"])
def test_the_adapter_is_that_of_a_plain_run(four_sites, tmp_path, weighting, method):
    """To the bound that the round's record says; the record tells of no single site."""
    keys = f"federation.weighting={weighting}", f"federation.method={method}"
    plain = play(four_sites(*keys), tmp_path / "plain")
    secure = play(four_sites(SECURE, *keys), tmp_path / "secure")
    record = secure.records()[-1]
    bound = record["secure_sum"]["error_bound"]
    off = (trained(secure) - trained(plain)).abs().max()
    rounding = trained(plain).abs().max() * 2**-22  # of float32, in the plain run and in this
    assert 0 < off <= bound + rounding < 1e-6
    assert list(record["folded"]) == list("abcd")
    assert all(facts.keys() == {"bytes"} for facts in record["folded"].values())
    examples = record["secure_sum"].get("num_examples")
    assert examples == (None if weighting == "uniform" else 32)


@pytest.mark.parametrize("fate", [lost, garbled])
@pytest.mark.parametrize("stage", ["train", "train.share", "train.mask"])
def test_who_is_lost_before_the_sum_is_not_in_it(four_sites, tmp_path, stage, fate):
    """The others' mean is that of a plain run without the lost one, who is named."""
    secure = play(four_sites(SECURE), tmp_path / "secure", {("b", stage): fate})
    plain = play(four_sites("federation.quorum=3"), tmp_path / "plain", {("b", "train"): lost})
    record = secure.records()[-1]
    if (stage, fate) == ("train.mask", garbled):  # of the right length: only their sum is no sum
        assert "total weight" in record["secure_sum"]["abandoned"]
        assert list(record["refused"]) == list("abcd")
        return
    assert list(record["folded"]) == list("acd")
    assert list(record["refused"]) == ["b"]
    assert (trained(secure) - trained(plain)).abs().max() < 1e-6


def test_traffic_is_what_the_plan_said(four_sites, tmp_path):
    """Up to the byte; down but for the header of the adapter."""
    recipe = four_sites(SECURE)
    record, planned = play(recipe, tmp_path / "secure").records()[-1], plan(recipe)
    assert record["bytes_up"] == 4 * planned.bytes_up
    header = record["bytes_down"] / 4 - planned.bytes_down
    assert 0 < header < 4096
    assert talk_of(recipe).down > 3 * talk_of(recipe).up / 2


def test_a_plan_refuses_sums_that_cannot_be(four_sites):
    """Before any data is read, as does an aggregator to which such a recipe is submitted."""
    recipe = four_sites(SECURE, "federation.local_steps=1000000000", "datasets=[{path: nowhere}]")
    with pytest.raises(RecipeError, match=r"secure_aggregation.*weights.*federation.max_weight"):
        plan(recipe)


@pytest.mark.parametrize("fate", [lost, garbled])
@pytest.mark.parametrize("stage", ["train.sign", "train.reveal"])
def test_who_is_lost_after_it_stays_in_the_sum(four_sites, tmp_path, stage, fate):
    """Enough others open it."""
    secure = play(four_sites(SECURE), tmp_path / "secure", {("b", stage): fate})
    plain = play(four_sites(), tmp_path / "plain")
    assert list(secure.records()[-1]["folded"]) == list("abcd")
    assert list(secure.records()[-1]["secure_sum"]["late"]) == ["b"]
    assert (trained(secure) - trained(plain)).abs().max() < 1e-6


@pytest.mark.parametrize("stage", ["train", "train.share", "train.mask", "train.sign"])
def test_below_the_threshold_nothing_is_revealed_and_the_round_is_played_again(
    four_sites, tmp_path, stage
):
    """With fresh keys, and the updates that the sites have kept."""
    recipe = four_sites(SECURE)
    run = simulation.start(plan(recipe), runs=tmp_path / "runs")
    gone = {("b", stage): lost, ("c", stage): lost}
    with pytest.raises(RunError, match=r"there is no secure sum.*Nothing was revealed"):
        resume(run, gone)
    assert not list(run.path.glob("sites/*/runs/*/summed.json"))
    resume(run)
    assert list(run.records()[-1]["folded"]) == list("abcd")
    plain = play(four_sites(), tmp_path / "plain")
    assert (trained(run) - trained(plain)).abs().max() < 1e-6


def test_once_shares_were_asked_for_there_is_no_second_sum(four_sites, tmp_path):
    """Too few of them open nothing: the round changes nothing, and the next is a new one."""
    gone = {("b", "train.reveal"): lost, ("c", "train.reveal"): lost}
    run = play(four_sites(SECURE, "federation.rounds=1"), tmp_path / "runs", gone)
    record = run.records()[-1]
    assert "cannot be opened" in record["secure_sum"]["abandoned"]
    assert record["folded"] == {}
    assert not run.load().adapter.part(run.spec().part("B")).values.any()  # as it began


class KilledError(Exception):
    """The aggregator is killed when a reply comes."""


def kill(_reply: Message) -> None:
    raise KilledError


def test_a_killed_aggregator_gets_the_same_sum_again(four_sites, tmp_path):
    """All sites have revealed, and are in no other sum: over the same members it is no other."""
    run = simulation.start(plan(four_sites(SECURE)), runs=tmp_path / "runs")
    with pytest.raises(KilledError):
        resume(run, {("d", "train.reveal"): kill})
    resume(run)
    assert list(run.records()[-1]["folded"]) == list("abcd")
    assert (trained(run) - trained(play(four_sites(), tmp_path / "plain"))).abs().max() < 1e-6


def test_no_update_is_in_two_sums_over_different_members(four_sites, tmp_path):
    """Not in the same round of a run, and not in another run: their difference would be an update.

    The round changes nothing, and the run goes on.
    """
    recipe = four_sites(SECURE, "federation.rounds=2")
    run = simulation.start(plan(recipe), runs=tmp_path / "runs")
    with pytest.raises(KilledError):
        resume(run, {("d", "train.reveal"): kill})
    resume(run, {("a", "train.mask"): lost})
    first, second = run.records()[-2:]
    assert "privacy.threshold" in first["secure_sum"]["abandoned"]
    assert all("none over other members" in first["refused"][site] for site in "bcd")
    assert first["folded"] == {}
    assert list(second["folded"]) == list("bcd")  # another update: a new sum
    again = simulation.start(plan(recipe), runs=tmp_path / "again")  # equal updates in round 1
    with sites_in(str(run.path / "sites")):
        serve(LossyGrid(recipe, {("a", "train.mask"): lost}), again.path, observe=lambda _: None)
    assert "abandoned" in again.records()[-2]["secure_sum"]


def test_a_site_that_was_started_anew_has_dropped_out(four_sites, tmp_path):
    """Its secrets were in memory; the others go on without it."""

    def restarted(reply: Message) -> Message:
        secure_sum._attempts.pop(("b", run.name))
        return reply

    run = simulation.start(plan(four_sites(SECURE)), runs=tmp_path / "runs")
    resume(run, {("b", "train.share"): restarted})
    record = run.records()[-1]
    assert list(record["folded"]) == list("acd")
    assert "has no keys for it" in record["refused"]["b"]


def test_the_first_to_answer_does_not_say_what_is_summed(four_sites, tmp_path, monkeypatch):
    """A site that signs another context is left out and named; the others are summed."""
    true = secure_sum.context_of

    def context_of(recipe, envelope, *, payload):
        own = next(named)
        return bytes(32) if own == "a" else true(recipe, envelope, payload=payload)

    named = iter("abcd")  # in the order of the cohort
    monkeypatch.setattr(secure_sum, "context_of", context_of)
    record = play(four_sites(SECURE), tmp_path / "runs").records()[-1]
    assert list(record["folded"]) == list("bcd")
    assert "signs another" in record["refused"]["a"]


def test_updates_are_clipped_by_their_sites(four_sites, tmp_path):
    """To ``privacy.clip_norm``, since nobody else can see their norm."""
    recipe = four_sites("privacy={unit: none, secure_aggregation: true, clip_norm: 1e-3}")
    run = play(recipe, tmp_path / "runs")
    start = fixed_point_of(recipe)
    part = run.load().adapter.part(run.spec().part("B"))
    assert 0 < float(part.norm()) <= start.clip_norm


def test_nothing_in_the_run_folder_of_the_aggregator_tells_of_a_site(four_sites, tmp_path):
    """But for who was in the sum: no loss, no norm, no number of examples, no update."""
    run = play(four_sites(SECURE), tmp_path / "runs")
    record = json.loads((run.path / "rounds.jsonl").read_text().splitlines()[-1])
    assert "train_loss" not in json.dumps(record)
    assert "norm" not in json.dumps(record)
    assert not run.spool.exists()


def test_clients_are_hidden_by_shares_of_noise(four_sites, tmp_path):
    """Each site adds its own; the sum has what the charge in the aggregator's ledger says.

    With four of four in the sum it has the shares of two more than the least that are unknown to a
    colluder. The signal is far below the noise.
    """
    secure = "secure_aggregation: true, epsilon: 8, delta: 1e-3, clip_norm: 0.01"
    recipe = four_sites(
        f"privacy={{unit: client, {secure}}}",
        "federation.weighting=uniform",
        "simulation.reproducible_noise=true",
    )
    run = play(recipe, tmp_path / "runs")
    ledger = Ledger(run.path.parent / "ledger.sqlite", new_filter=RenyiFilter)
    (row,) = ledger.rows("clients-zero-out")
    charge = row.charge
    assert (charge.mechanism, charge.steps, charge.sensitivity) == ("skellam", 1, 0.01)
    assert charge == round_charge(recipe)
    noise = run.load().adapter.part(run.spec().part("B")).values.double()
    honest = recipe.threshold - recipe.colluders
    deviation = charge.noise_multiplier * 0.01 * math.sqrt(4 / honest) / 4
    assert float(noise.std()) == pytest.approx(deviation, rel=0.02)
    assert "norm" not in json.dumps(run.records()[-1])


def test_noise_is_drawn_anew_for_no_second_sum(four_sites, tmp_path):
    """Sums of equal updates with other noise would tell more than was charged."""
    secure = "secure_aggregation: true, epsilon: 8, delta: 1e-3, clip_norm: 0.01"
    run = simulation.start(
        plan(four_sites(f"privacy={{unit: client, {secure}}}", "federation.weighting=uniform")),
        runs=tmp_path / "runs",
    )
    with pytest.raises(KilledError):
        resume(run, {("d", "train.reveal"): kill})
    resume(run)
    record = run.records()[-1]
    assert "abandoned" in record["secure_sum"]
    assert sorted(record["refused"]) == list("abcd")


def test_sites_that_protect_examples_are_charged_once(four_sites, tmp_path):
    """Their updates are masked as they are; an attempt that is begun again costs nothing more."""
    keys = "secure_aggregation: true, epsilon: 8, delta: 1e-3, records: 40"
    recipe = four_sites(f"privacy={{unit: example, {keys}}}")
    run = simulation.start(plan(recipe), runs=tmp_path / "runs")
    with pytest.raises(RunError, match="Nothing was revealed"):
        resume(run, {("b", "train.mask"): lost, ("c", "train.mask"): lost})
    resume(run)
    assert list(run.records()[-1]["folded"]) == list("abcd")
    for site in "abcd":
        ledger = Ledger(run.path / "sites" / site / "ledger.sqlite", new_filter=RenyiFilter)
        assert len(ledger.rows(DEFAULT_ACCOUNT)) == 1


def test_a_simulation_measures_what_an_aggregator_could_not(four_sites, tmp_path):
    """With ``simulation.compare``: base and federation at each site, beside the baselines."""
    run = simulation.start(
        plan(four_sites(SECURE, "simulation.compare=true")), runs=tmp_path / "runs"
    )
    simulation.simulate(run, observe=lambda _: None)
    assert run.records()[-1]["evaluation"] == {}
    comparison = read_comparison(run)
    assert overall(comparison.federated).loss < overall(comparison.base).loss
    assert list(comparison.alone) == list(comparison.base) == list("abcd")
    assert "lowered the held-out loss" in (run.path / "report.html").read_text()
