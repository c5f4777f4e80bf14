"""SCAFFOLD without a second vector, against the paper's algorithm."""

import pytest
import torch

from fedlora.adapter import AdapterSpec, AdapterState, AdapterUpdate
from fedlora.recipe import Recipe
from fedlora.runtime.site.drift import SiteDrift
from fedlora.runtime.site.memory import FOLDER, SiteMemory
from fedlora.training.schedule import learning_rate
from tests.strategies import make_spec

SPEC = make_spec(rank=2, modules={"m.up_proj": (5, 4)})
ADDS = "server_momentum: 0, drift_correction: true, rounds: 40, local_steps: 6"
SITES, RATE = 3, 0.05


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER, str(tmp_path))
    return tmp_path


def recipe_of(method="average", **keys) -> Recipe:
    federation = f"{{method: {method}, {ADDS}}}"
    recipe = Recipe.from_yaml(
        f"{{datasets: [{{path: x}}], privacy: {{unit: none}}, federation: {federation}}}"
    )
    keys = {"learning_rate": RATE, "warmup_ratio": 0.2, "lora_r": 2} | keys
    return recipe.model_copy(update=keys)


class Quadratic:
    """Sites whose losses have other curvatures and other minima: local steps drift apart."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.curvature = 0.5 + 3 * torch.rand(SITES, SPEC.size, generator=generator)
        self.minimum = torch.randn(SITES, SPEC.size, generator=generator)

    def gradient(self, site, values):
        return self.curvature[site] * (values - self.minimum[site])

    def optimum(self):
        return (self.curvature * self.minimum).sum(0) / self.curvature.sum(0)


def drift_of(recipe, memory, values, *, number):
    return SiteDrift(recipe=recipe, memory=memory, number=number, received=state(values))


def state(values) -> AdapterState:
    return AdapterState(spec=SPEC, values=values)


def ours(problem, recipe, *, rounds, start=1, values=None, corrected=True):
    """Return the global adapter after each round, with what the sites remember on disk."""
    values, seen = torch.zeros(SPEC.size) if values is None else values, []
    for number in range(start, start + rounds):
        trained = []
        for site in range(SITES):
            memory, mine = SiteMemory(f"site-{site + 1}", "run"), values.clone()
            drift = drift_of(recipe, memory, values, number=number)
            found = drift.correction if corrected else None
            part = state(mine).part(SPEC.part(recipe.federation.facts.trained(number)))
            for rate in rates(recipe, number):
                step = problem.gradient(site, mine)
                if found is not None:
                    step = step + state_of_whole(found)
                mine = mine - rate * step * mask(part.spec)
            drift.keep(state(mine))
            trained.append(mine)
        values = torch.stack(trained).mean(0)
        seen.append(values)
    return seen


def rates(recipe, number):
    steps = recipe.federation.local_steps
    first = (number - 1) * steps
    total = recipe.total_steps
    return [learning_rate(recipe, s, total_steps=total) for s in range(first, first + steps)]


def mask(part: AdapterSpec):
    factors = {tensor.factor for tensor in part.tensors}
    ones = [torch.full((t.size,), float(t.factor in factors)) for t in SPEC.tensors]
    return torch.cat(ones)


def state_of_whole(part: AdapterState):
    update = AdapterUpdate(spec=part.spec, values=part.values, num_examples=1)
    return state(torch.zeros(SPEC.size)).plus(update).values


def paper(problem, recipe, *, rounds):
    """Return the same by algorithm 1, option II: variates at the sites and at the server.

    Where the paper has the number of steps times a rate, this has the sum of the steps' rates.
    """
    values, common = torch.zeros(SPEC.size), torch.zeros(SPEC.size)
    own, seen = torch.zeros(SITES, SPEC.size), []
    for number in range(1, rounds + 1):
        trained, new = [], []
        for site in range(SITES):
            mine = values.clone()
            for rate in rates(recipe, number):
                mine = mine - rate * (problem.gradient(site, mine) - own[site] + common)
            trained.append(mine)
            new.append(own[site] - common + (values - mine) / sum(rates(recipe, number)))
        common = common + (torch.stack(new) - own).mean(0)
        own, values = torch.stack(new), torch.stack(trained).mean(0)
        seen.append(values)
    return seen


def test_with_all_sites_and_equal_weights_it_is_the_paper_s_algorithm():
    """Round by round, under a schedule with warm-up, though the server sends one vector."""
    problem, recipe = Quadratic(), recipe_of()
    for found, expected in zip(
        ours(problem, recipe, rounds=12), paper(problem, recipe, rounds=12), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_it_ends_nearer_to_the_common_optimum():
    """Plain averaging of drifted sites stays away from it."""
    problem = Quadratic()
    recipe = recipe_of(learning_rate=0.1, lr_scheduler="constant")
    plain = ours(problem, recipe, rounds=40, corrected=False)[-1]
    (*_, corrected) = ours(problem, recipe, rounds=40)
    away = [float((values - problem.optimum()).norm()) for values in (plain, corrected)]
    assert away[1] < 0.05 * away[0]


def test_a_round_that_is_played_again_is_corrected_by_the_same_bits():
    """What its first try kept does not count."""
    problem, recipe = Quadratic(), recipe_of()
    seen = ours(problem, recipe, rounds=4)
    again = ours(problem, recipe, rounds=2, start=3, values=seen[1])
    assert all(map(torch.equal, again, seen[2:]))


def test_where_factors_take_turns_each_has_a_direction_of_its_own(folder):
    """B's direction is of the rounds that trained B: a site remembers both."""
    problem, recipe = (
        Quadratic(),
        recipe_of("alternate", lr_scheduler="constant", learning_rate=0.1),
    )
    ours(problem, recipe, rounds=2)
    names = {path.name for path in folder.rglob("*.safetensors")}
    assert names == {"direction-B-00000001.safetensors", "direction-A-00000002.safetensors"}
    seen = ours(problem, recipe, rounds=40)
    assert float((seen[-1] - problem.optimum()).norm()) < 0.2


def test_a_head_moves_in_every_round():
    """Also where factors take turns: what it moved by is over the rates of all rounds between."""
    recipe = recipe_of("alternate", lr_scheduler="constant", warmup_ratio=0.0)
    spec = make_spec(rank=2, modules={"m.up_proj": (5, 4)}, heads={"score.weight": (2, 5)})

    def drift(number, values):
        received = AdapterState(spec=spec, values=torch.full((spec.size,), values))
        memory = SiteMemory("site-1", "run")
        return SiteDrift(recipe=recipe, memory=memory, number=number, received=received)

    first = drift(1, 0.0)
    first.keep(first.received)
    per_round = recipe.federation.local_steps * RATE
    found = {tensor.factor: values for tensor, values in drift(5, -1.0).correction.factors()}
    assert set(found) == {"B", "head"}
    torch.testing.assert_close(found["B"], torch.full((4, 2), 1 / (2 * per_round)))
    torch.testing.assert_close(found["head"], torch.full((2, 5), 1 / (4 * per_round)))


def test_a_site_that_was_away_measures_the_rounds_between(folder):
    """It divides by the rates of all rounds since; one that is new has no correction."""
    recipe = recipe_of(lr_scheduler="constant", warmup_ratio=0.0)
    memory, start = SiteMemory("site-1", "run"), torch.zeros(SPEC.size)
    first = drift_of(recipe, memory, start, number=2)
    assert first.correction is None
    first.keep(state(start))
    found = drift_of(recipe, memory, start - 1.0, number=5).correction
    per_round = recipe.federation.local_steps * RATE
    torch.testing.assert_close(found.values, torch.full((SPEC.size,), 1 / (3 * per_round)))


def test_who_does_not_ask_for_it_needs_no_memory(folder, monkeypatch):
    """Nothing is kept, and no folder is asked for."""
    monkeypatch.delenv(FOLDER)
    recipe = Recipe.from_yaml("{datasets: [{path: x}], privacy: {unit: none}}")
    drift = drift_of(recipe, SiteMemory("site-1", "run"), torch.zeros(SPEC.size), number=2)
    assert drift.correction is None
    drift.keep(drift.received)
    assert not list(folder.iterdir())
