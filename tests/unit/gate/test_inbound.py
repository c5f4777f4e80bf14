"""What may be trained on: the beginning is the seed's, and what follows stays within bounds."""

import math
import time

import pytest
import torch

from fedlora.adapter import AdapterState
from fedlora.aggregation import new_aggregator, new_optimizer
from fedlora.errors import PolicyError
from fedlora.gate.inbound import Seen, constant_factors, factor_digest, require_adapter
from fedlora.gate.policy import AdapterBounds
from fedlora.lock import Beginning, Lock
from fedlora.methods import METHODS
from fedlora.recipe import Recipe
from fedlora.runtime.run_folder import RunFolder
from tests.strategies import HEADS, MODULES, make_spec, make_state, make_update

SPEC = make_spec(heads=HEADS)
NAMES = [*MODULES, *HEADS]
"""What has a norm: modules that are adapted, and heads."""
FREE = AdapterBounds(spectral_norm=1e3, growth_per_round=1e3)
TEXT = "privacy: {unit: none}\ndatasets: [{path: a.jsonl, site: north}]\nseed: 7\n"


def recipe(method: str = "product", *overrides: str) -> Recipe:
    return Recipe.from_yaml(TEXT, overrides=[f"federation.method={method}", *overrides])


def require(state: AdapterState, *, number: int, method: str = "product", **kwargs: object):
    bounds = kwargs.pop("bounds", FREE)
    return require_adapter(state, number=number, recipe=recipe(method), bounds=bounds, **kwargs)


def initial() -> AdapterState:
    return AdapterState.initial(SPEC, seed=7)


def of_norm(norm: float) -> AdapterState:
    """Return an adapter of which every module, and every head's change, has this spectral norm."""
    state = initial()
    for _, down, up in state.pairs():
        down.zero_()
        down[0, 0], up[1, 0] = 2.0, norm / 2 / SPEC.scaling
    for _, head in state.heads():
        head.flatten()[0] += norm
    return state


@pytest.mark.parametrize("method", METHODS)
def test_a_run_begins_as_its_folder_does(method, tmp_path):
    """What an aggregator sends first is what the run's folder begins with, by any method."""
    run = RunFolder.create(recipe(method), SPEC, data={}, runs=tmp_path)
    norms = require(run.load().adapter, number=0, method=method)
    assert norms == dict.fromkeys(NAMES, 0.0)


@pytest.mark.parametrize("place", [0, -1])
def test_another_beginning_is_refused(place):
    """One value is enough, of A or of B."""
    state = initial()
    state.values[place] += 1e-3
    with pytest.raises(PolicyError, match="is not what the recipe's seed 7 gives, but a run begin"):
        require(state, number=0)
    with pytest.raises(PolicyError, match="is not what the recipe's seed 7 gives"):
        require(AdapterState.initial(SPEC, seed=8), number=0)


@pytest.mark.parametrize(
    ("method", "optimizer"),
    [*((method, "sgd") for method in METHODS), ("freeze-a", "adam"), ("freeze-a", "yogi")],
)
def test_what_an_honest_aggregator_makes_passes(method, optimizer):
    """Round after round, by any method: the checks know what each of them changes."""
    asked = recipe(method, f"federation.server_optimizer={optimizer}")
    state, server, seen = initial(), new_optimizer(asked.federation), None
    for number in range(5):
        norms = require_adapter(state, number=number, recipe=asked, bounds=FREE, seen=seen)
        seen = Seen(rounds=number, norms=norms)
        part = SPEC.part(asked.federation.facts.sent(number + 1))
        aggregator = new_aggregator(asked.federation, attackers=0)
        aggregator.begin(state)
        for client in range(2):
            aggregator.add(make_update(part, seed=10 * number + client), 1.0)
        state = server.step(state, aggregator.finish()).adapter
        state = AdapterState(spec=state.spec, values=state.values.clone())
    assert max(norms.values()) > 0 or method == "share-a"


def begun_with(state: AdapterState, method: str = "product") -> Recipe:
    """Return a recipe that is locked to begin with an adapter."""
    lock = Lock(
        base_model="embedded",
        base_digest=SPEC.base_digest,
        weights_digest="0" * 64,
        tokenizer_digest="1" * 64,
        target_modules=SPEC.target_modules,
        modules=(("a", 1, 1),),
        beginning=Beginning(
            a_digest=factor_digest(state, "A"),
            b_digest=factor_digest(state, "B"),
            head_digest=factor_digest(state, "head"),
        ),
    )
    values = recipe(method, "init_from=adapter").model_dump(mode="json", exclude_none=True)
    return Recipe.model_validate({**values, "lock": lock.model_dump(mode="json")})


@pytest.mark.parametrize("place", [0, -1, SPEC.part(("A", "B")).size - 1])
def test_a_run_may_begin_with_the_adapter_that_it_was_locked_to(place):
    """Value for value, of A, of B and of the head; not with what the seed would give."""
    state = make_state(SPEC, seed=3)
    asked = begun_with(state)
    require_adapter(state, number=0, recipe=asked, bounds=FREE)
    other = AdapterState(spec=SPEC, values=state.values.clone())
    other.values[place] += 1e-3
    for wrong in (other, initial()):
        with pytest.raises(PolicyError, match="not those of the adapter that the recipe was lock"):
            require_adapter(wrong, number=0, recipe=asked, bounds=FREE)


def test_a_factor_that_never_changes_is_that_of_the_adapter_begun_with():
    """With A frozen it is the A that the recipe was locked to, in all rounds."""
    state = make_state(SPEC, seed=3)
    asked = begun_with(state, "freeze-a")
    for tensor, values in state.factors():
        if tensor.factor == "B":
            values.add_(0.1)
    require_adapter(state, number=5, recipe=asked, bounds=FREE)
    state.values[0] += 1e-3
    with pytest.raises(PolicyError, match="The factors A are not those"):
        require_adapter(state, number=5, recipe=asked, bounds=FREE)


def test_growth_of_an_adapter_begun_with_counts_from_when_it_was_seen():
    """A site that was not there at the beginning knows no norm that it grew from."""
    state, bounds = of_norm(50), AdapterBounds(spectral_norm=100, growth_per_round=1)
    asked = begun_with(state)
    require_adapter(state, number=2, recipe=asked, bounds=bounds)
    seen = Seen(rounds=1, norms=dict.fromkeys(MODULES, 48.5))
    with pytest.raises(PolicyError, match=r"grew by 1\.5 in 1 round"):
        require_adapter(state, number=2, recipe=asked, bounds=bounds, seen=seen)
    low = AdapterBounds(spectral_norm=40, growth_per_round=1)
    with pytest.raises(PolicyError, match="spectral norm of 50, but at most 40"):
        require_adapter(state, number=2, recipe=asked, bounds=low)


def test_a_factor_that_the_method_never_changes_stays():
    """With A frozen the aggregator cannot choose what B's gradients are projected to."""
    assert constant_factors(recipe("freeze-a")) == {"A"}
    assert constant_factors(recipe("share-a")) == {"B"}
    for method in ("product", "average", "alternate", "refresh"):
        assert constant_factors(recipe(method)) == frozenset()
    state = initial()
    for tensor, values in state.factors():
        if tensor.factor == "B":
            values.fill_(0.1)
    require(state, number=5, method="freeze-a")
    state.values[0] += 1e-3
    with pytest.raises(PolicyError, match=r"lora_A is not .* but method freeze-a never changes it"):
        require(state, number=5, method="freeze-a")
    require(state, number=5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_are_finite(bad):
    """The tensor is named; a norm of such values would say nothing."""
    state = make_state(SPEC)
    state.values[3] = bad
    with pytest.raises(PolicyError, match=r"q_proj.lora_A that are not finite"):
        require(state, number=5)


def test_the_spectral_norm_is_bounded_by_module():
    """Module, value and bound are named."""
    bounds = AdapterBounds(spectral_norm=3, growth_per_round=100)
    norms = require(of_norm(2.999), number=1, bounds=bounds)
    assert norms == pytest.approx(dict.fromkeys(NAMES, 2.999))
    state = of_norm(1)
    *_, (module, _, up) = state.pairs()
    up[1, 0] *= 3.1
    reason = f"changes {module} by a spectral norm of 3.1, but at most 3 is allowed"
    with pytest.raises(PolicyError, match=reason):
        require(state, number=1, bounds=bounds)


def test_growth_is_bounded_by_the_rounds_that_passed():
    """From the beginning if nothing was seen; rounds in which the site had no part count."""
    bounds = AdapterBounds(spectral_norm=100, growth_per_round=1)
    require(of_norm(2.99), number=3, bounds=bounds)
    with pytest.raises(PolicyError, match=r"grew by 3\.01 in 3 round"):
        require(of_norm(3.01), number=3, bounds=bounds)
    seen = Seen(rounds=3, norms=dict.fromkeys(NAMES, 2.5))
    require(of_norm(4.49), number=5, bounds=bounds, seen=seen)
    with pytest.raises(PolicyError, match=r"grew by 2\.01 in 2 round"):
        require(of_norm(4.51), number=5, bounds=bounds, seen=seen)
    require(of_norm(0.1), number=4, bounds=bounds, seen=seen)


def test_an_adapter_that_was_seen_has_grown_by_nothing():
    """The chain holds it to its digest, so that it may come again after a stop."""
    bounds = AdapterBounds(spectral_norm=100, growth_per_round=1)
    seen = Seen(rounds=3, norms=dict.fromkeys(NAMES, 0.0))
    for number in (2, 3):
        require(of_norm(50), number=number, bounds=bounds, seen=seen)


def test_an_adapter_that_is_scaled_a_hundredfold_is_refused():
    """The crude attack: what is memorised comes out when the change is amplified."""
    state = of_norm(0.5)
    state.values.mul_(10)
    with pytest.raises(PolicyError, match="spectral norm of 50"):
        require(state, number=1, bounds=AdapterBounds())


def test_a_large_adapter_costs_less_than_the_training_of_a_step():
    """No matrix of a weight's size is formed: 28 modules of 4096 by 4096 in a second or two."""
    modules = {f"layers.{i}.q_proj": (4096, 4096) for i in range(28)}
    state = make_state(make_spec(rank=16, alpha=16.0, modules=modules))
    began = time.process_time()
    require(state, number=1, bounds=AdapterBounds(spectral_norm=1e6, growth_per_round=1e6))
    assert time.process_time() - began < 10


def test_a_head_is_bounded_by_what_it_has_become():
    """Since the beginning, which the seed gives: a matrix by its spectral norm, a vector by its."""
    bounds, state = AdapterBounds(spectral_norm=3, growth_per_round=100), initial()
    heads = dict(state.heads())
    heads["classifier.dense.bias"].fill_(1.0)
    heads["score.weight"].add_(torch.full((2, 4), 0.5))
    norms = require(state, number=1, bounds=bounds)
    assert norms["classifier.dense.bias"] == pytest.approx(2)
    assert norms["score.weight"] == pytest.approx(math.sqrt(2))
    assert norms["classifier.dense.weight"] == 0
    heads["classifier.dense.bias"].fill_(2.0)
    with pytest.raises(
        PolicyError, match=r"changes classifier\.dense\.bias by a spectral norm of 4"
    ):
        require(state, number=1, bounds=bounds)


@pytest.mark.parametrize("method", METHODS)
def test_a_head_begins_as_the_seed_says(method):
    """And every method may change it afterwards."""
    state = initial()
    dict(state.heads())["score.weight"][0, 0] += 1e-3
    with pytest.raises(PolicyError, match=r"score\.weight is not what the recipe's seed 7 gives"):
        require(state, number=0, method=method)
    require(state, number=1, method=method)
