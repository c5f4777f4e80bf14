"""Aggregation, whatever the adapters: against dense matrices, and what must not matter."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedlora.adapter import AdapterSpec, AdapterState, AdapterUpdate
from fedlora.aggregation import RULES, new_aggregator, new_optimizer
from fedlora.methods import COORDINATE_WISE, METHODS
from fedlora.sections import Federation
from tests.oracles import dense_products, nearest_adapter
from tests.strategies import copy_of, make_spec, make_state, specs

METHOD = st.sampled_from(sorted(METHODS))
WEIGHTS = st.floats(0.01, 1000)
SHARES = st.sampled_from([0.0, 0.3, 1.0])
# float32 factors of a product, whose sums pass through several roundings
CLOSE = 2e-5


@st.composite
def values_of(draw: st.DrawFn, spec: AdapterSpec) -> Tensor:
    """Tame values, with zeros and repetitions: a byte each, since single floats draw slowly."""
    drawn = draw(st.binary(min_size=spec.size, max_size=spec.size))
    return torch.frombuffer(bytearray(drawn), dtype=torch.int8).float() / 16


@st.composite
def rounds(draw: st.DrawFn, *, clients: int = 4, mixed: bool = False, method: str = "product"):
    """A global adapter, and what each client sends, with weight and share."""
    spec = draw(specs())
    start = AdapterState(spec=spec, values=draw(values_of(spec)))
    sent = METHODS[method].sent(1)
    answers = []
    for _ in range(draw(st.integers(1, clients))):
        rank = draw(st.integers(1, spec.rank)) if mixed else spec.rank
        part = spec.part(sent, rank=rank)
        update = AdapterUpdate(spec=part, values=draw(values_of(part)), num_examples=1)
        answers.append((update, draw(WEIGHTS), draw(SHARES) if mixed else 1.0))
    return start, answers


def folded(start: AdapterState, answers, *, method: str = "product") -> AdapterUpdate:
    aggregator = new_aggregator(Federation(method=method), attackers=0)
    aggregator.begin(start)
    for update, weight, share in answers:
        aggregator.add(copy_of(update), weight, share=share)
    return aggregator.finish()


def size(*matrices: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float(m.square().sum()) for each in matrices for m in each.values()))


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return size({module: one[module] - other[module] for module in one})


def trained(start: AdapterState, answers) -> list[dict[str, Tensor]]:
    """Return what each client made of the global adapter."""
    return [dense_products(start.plus(update)) for update, _, _ in answers]


@given(rounds(mixed=True))
def test_product_is_the_dense_mean_of_products(case):
    """Of any ranks, shares and weights, up to the cut to twice the rank, which it bounds."""
    start, answers = case
    aggregator = new_aggregator(Federation(), attackers=0)
    aggregator.begin(start)
    target, total = dense_products(start), sum(weight for _, weight, _ in answers)
    largest = size(target)
    for update, weight, share in answers:
        aggregator.add(copy_of(update), weight, share=share)
        received = start.part(update.spec)
        before, after = dense_products(received), dense_products(received.plus(update))
        largest = max(largest, size(after))
        for module in target:
            target[module] += weight * share / total * (after[module] - before[module])
    result = dense_products(start.plus(aggregator.finish()))
    lost = apart(result, target)
    wide = start.part(start.spec.part(rank=2 * start.spec.rank))
    least = apart(nearest_adapter(wide, target), target)
    rounding = CLOSE * largest
    assert least - rounding <= lost <= aggregator.dropped + rounding
    if len(answers) == 1:
        assert lost <= rounding


@given(data=st.data(), method=METHOD)
def test_only_ratios_of_weights_matter(data, method):
    """All weights ten times as large give the same result."""
    start, answers = data.draw(rounds(method=method))
    ours = dense_products(start.plus(folded(start, answers, method=method)))
    tenfold = [(update, 10 * weight, share) for update, weight, share in answers]
    theirs = dense_products(start.plus(folded(start, tenfold, method=method)))
    assert apart(ours, theirs) <= CLOSE * (1 + size(ours, *trained(start, answers)))


@given(data=st.data(), method=METHOD)
def test_one_client_s_adapter_is_the_outcome(data, method):
    """Whatever the method and the client's weight."""
    start, [(update, weight, _)] = data.draw(rounds(clients=1, method=method))
    outcome = dense_products(start.plus(folded(start, [(update, weight, 1.0)], method=method)))
    assert apart(outcome, dense_products(start.plus(update))) <= CLOSE * (1 + size(outcome))


@given(data=st.data(), method=METHOD)
def test_clients_that_change_nothing_leave_the_global_adapter(data, method):
    """Without momentum a round of zeros keeps the products, and has no tail to speak of."""
    start, answers = data.draw(rounds(method=method))
    zeros = [
        (AdapterUpdate(spec=u.spec, values=torch.zeros(u.spec.size), num_examples=1), weight, 1.0)
        for u, weight, _ in answers
    ]
    federation = Federation(method=method, server_momentum=0.0)
    step = new_optimizer(federation).step(start, folded(start, zeros, method=method))
    before = dense_products(start)
    assert apart(dense_products(step.adapter), before) <= CLOSE * size(before)
    assert step.tail == 0


@given(rounds(mixed=True), st.randoms())
def test_the_order_of_clients_matters_no_more_than_the_cut(case, random):
    """Product streams: what differs is what it dropped, and nothing where nothing was."""
    start, answers = case
    outcomes, dropped = [], 0.0
    for _ in range(2):
        aggregator = new_aggregator(Federation(), attackers=0)
        aggregator.begin(start)
        for update, weight, share in answers:
            aggregator.add(copy_of(update), weight, share=share)
        outcomes.append(dense_products(start.plus(aggregator.finish())))
        dropped += aggregator.dropped
        answers = random.sample(answers, len(answers))
    assert apart(*outcomes) <= dropped + CLOSE * (1 + size(*trained(start, answers)))


@given(rounds(clients=3), st.sampled_from([100.0, 0.01]))
def test_a_turned_gauge_does_not_get_through(case, gauge):
    """100·B and A/100 in place of B and A change the outcome by no more than their rounding."""
    start, answers = case
    update, weight, _ = answers[0]
    state = start.plus(update)
    for _, down, up in state.pairs():
        down.div_(gauge)
        up.mul_(gauge)
    hostile = AdapterUpdate(
        spec=update.spec, values=state.minus(start), num_examples=update.num_examples
    )
    # The increments themselves are float32, and lose what they are larger than their factors.
    sent = dense_products(start.plus(hostile))
    rounding = apart(sent, dense_products(start.plus(update)))
    honest = dense_products(start.plus(folded(start, answers)))
    turned = dense_products(start.plus(folded(start, [(hostile, weight, 1.0), *answers[1:]])))
    scale = 1 + size(*trained(start, answers))
    assert rounding <= 1e-4 * scale
    assert apart(honest, turned) <= rounding + CLOSE * scale


@given(rounds(), st.floats(0.1, 2), st.floats(0, 0.9))
def test_a_server_step_is_the_nearest_to_its_target(case, rate, momentum):
    """Heavy ball on dense matrices, two steps, and a tail from 0 to 1."""
    start, answers = case
    rate, momentum = round(rate, 2), round(momentum, 2)
    optimizer = new_optimizer(
        Federation(server_learning_rate=rate, server_momentum=momentum or 0.0)
    )
    before, now = dense_products(start), start
    adapter = AdapterState(spec=start.spec, values=start.values.clone())
    for _ in range(2):
        update = folded(now, answers)
        g, outcome = dense_products(now), dense_products(now.plus(update))
        step = optimizer.step(adapter, update)
        target = {m: g[m] + rate * (outcome[m] - g[m]) + momentum * (g[m] - before[m]) for m in g}
        nearest = nearest_adapter(start, target)
        result = dense_products(step.adapter)
        scale = 1 + size(g, outcome, before)
        lost, least = apart(result, target), apart(nearest, target)
        assert least - CLOSE * scale <= lost <= least + CLOSE * scale
        assert -1e-6 <= step.tail <= 1 + 1e-6
        before, adapter = g, step.adapter
        now = AdapterState(spec=adapter.spec, values=adapter.values.clone())


@given(
    clients=st.integers(1, 7),
    seed=st.integers(0, 99),
    scale=st.sampled_from([1e-3, 1.0, 1e6]),
    attackers=st.integers(0, 3),
)
def test_every_rule_votes_on_any_changes(clients, seed, scale, attackers):
    """Weights are positive and finite, shares from 0 to 1, and a reason stands for a zero share."""
    generator = torch.Generator().manual_seed(seed)
    changes = torch.randn(clients, 3, generator=generator, dtype=torch.float64)
    changes[torch.rand(clients, generator=generator) < 0.2] = 0
    changes[0] *= scale
    weights = (torch.rand(clients, generator=generator) + 0.1).tolist()
    for rule in RULES.values():
        votes = rule(changes @ changes.T, weights, attackers=attackers)
        assert len(votes) == clients
        for vote in votes:
            assert 0 < vote.weight < math.inf
            assert 0 <= vote.share <= 1
            assert bool(vote.reason) == (vote.share == 0)


@pytest.mark.parametrize("robust", sorted(COORDINATE_WISE))
@given(seed=st.integers(0, 99))
def test_a_coordinate_wise_minority_cannot_leave_the_honest_range(robust, seed):
    """In each value of the update, whatever two of five clients send."""
    spec = make_spec().part("B")
    honest = [make_state(spec, seed=seed + client).values for client in range(3)]
    hostile = make_state(spec, seed=seed + 9).values * 1e6
    aggregator = new_aggregator(Federation(method="freeze-a", robust=robust), attackers=2)
    aggregator.begin(make_state())
    for values in (*honest, hostile, hostile):
        aggregator.add(AdapterUpdate(spec=spec, values=values, num_examples=1), 1.0)
    chosen = aggregator.finish().values
    assert bool((chosen >= torch.stack(honest).min(dim=0).values).all())
    assert bool((chosen <= torch.stack(honest).max(dim=0).values).all())
