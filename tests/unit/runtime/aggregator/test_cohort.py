"""Who takes part in a round: by the recipe's seed, or by draws that nobody can know."""

import math

import pytest

from fedlora.adapter import AdapterState
from fedlora.recipe import Recipe
from fedlora.runtime.aggregator.cohort import all_folded, cohort_of
from fedlora.runtime.run_folder import Checkpoint, RunFolder
from tests.strategies import make_spec

SITES, EXPECTED = 50, 10
PRIVATE = f"""
datasets: [{{path: x}}]
privacy: {{unit: client, epsilon: 8, delta: 1e-5, clip_norm: 1}}
federation: {{sites: {SITES}, cohort_size: {EXPECTED}, evaluate_every: 0}}
"""
POISSON = "federation.cohort_sampling=poisson"
REPEATED = (POISSON, "simulation.reproducible_noise=true")


def recipe(*overrides: str) -> Recipe:
    return Recipe.from_yaml(PRIVATE, overrides=overrides)


@pytest.fixture
def begun(tmp_path):
    """Return a run folder of a recipe."""
    return lambda of: RunFolder.create(of, make_spec(), data={}, runs=tmp_path)


def draw(run: RunFolder, of: Recipe, number: int) -> tuple[str, ...]:
    return cohort_of(run, of, number=number, connected=sorted(of.site_names))


def test_each_site_takes_part_with_the_same_probability_on_its_own(begun):
    """Over 500 reproducible rounds: inclusions, sizes and pairs are those of Poisson sampling.

    Each within five standard deviations; the sizes of fixed-size cohorts do not vary.
    """
    of, rounds, rate = recipe(*REPEATED), 500, EXPECTED / SITES
    run = begun(of)
    cohorts = [frozenset(draw(run, of, number)) for number in range(1, rounds + 1)]
    spread = math.sqrt(rate * (1 - rate) / rounds)
    for site in of.site_names:
        assert abs(sum(site in c for c in cohorts) / rounds - rate) < 5 * spread
    variance = sum((len(c) - EXPECTED) ** 2 for c in cohorts) / rounds
    assert variance == pytest.approx(SITES * rate * (1 - rate), rel=5 * math.sqrt(2 / rounds))
    both = sum({"site-1", "site-2"} <= c for c in cohorts) / rounds
    assert abs(both - rate**2) < 5 * math.sqrt(rate**2 * (1 - rate**2) / rounds)


def test_the_seed_does_not_tell_who_took_part(begun):
    """Two runs of one recipe draw other cohorts; by chance they agree once in 10⁸ times."""
    of = recipe(POISSON)
    one, other = begun(of), begun(of)
    assert draw(one, of, 1) != draw(other, of, 1)
    fixed = recipe()
    assert draw(one, fixed, 1) == draw(other, fixed, 1)
    assert len(draw(one, fixed, 1)) == EXPECTED


def test_a_cohort_is_drawn_once_and_kept_until_its_round_is_committed(begun):
    """A stop in between, or clients that do not answer, choose no other."""
    of = recipe(POISSON)
    run = begun(of)
    first = draw(run, of, 1)
    assert draw(RunFolder.open(run.path), of, 1) == first
    assert list(first) == sorted(first)
    state = AdapterState.initial(run.spec(), seed=0)
    run.save(Checkpoint(round=1, adapter=state, record={"round": 1}))
    assert not run.kept_cohort(1).exists()
    assert draw(run, of, 1) != first  # but by chance, with a probability of 10⁻⁸


def test_a_site_that_is_not_connected_is_drawn_all_the_same(begun):
    """Or availability would decide who takes part."""
    of = recipe(*REPEATED)
    run = begun(of)
    assert cohort_of(run, of, number=1, connected=["site-1"]) == draw(begun(of), of, 1)


@pytest.mark.parametrize(
    ("cohort", "folded", "all_of_them"),
    [(["a", "b"], {"a": {}, "b": {}}, True), (["a", "b"], {"a": {}}, False), ([], {}, True)],
)
def test_whether_all_who_were_drawn_were_folded(cohort, folded, all_of_them):
    """In each round; round 0 has no cohort."""
    records = [{"round": 0}, {"round": 1, "cohort": cohort, "folded": folded}]
    assert all_folded(records) is all_of_them
