"""Accounting, whatever the charges: what must not matter, and what must never cost less."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from fedlora.privacy.accounting.calibration import epsilon
from fedlora.privacy.accounting.renyi_filter import RenyiFilter
from fedlora.privacy.charge import Charge

DELTAS = st.sampled_from([1e-3, 1e-5, 1e-8])
NOISE = st.floats(0.4, 50)
RATES = st.just(1.0) | st.floats(1e-4, 0.5)


@st.composite
def charges(draw: st.DrawFn) -> list[Charge]:
    """Up to three charges of one unit and adjacency."""
    return [
        Charge(
            unit="example",
            adjacency="add-remove",
            sensitivity=1.0,
            noise_multiplier=draw(NOISE),
            sampling_rate=draw(RATES),
            steps=draw(st.integers(1, 300)),
            sampler="poisson",
        )
        for _ in range(draw(st.integers(1, 3)))
    ]


@given(data=st.data(), drawn=charges(), delta=DELTAS)
def test_the_filter_s_epsilon_never_falls(data, drawn, delta):
    """With a further charge, more steps, less noise, or a higher rate."""
    budget = RenyiFilter(epsilon=8, delta=delta)
    one, *others = drawn
    worse = data.draw(
        st.sampled_from(
            [
                [*drawn, one],
                [*drawn, replace(one, noise_multiplier=data.draw(NOISE))],
                [replace(one, steps=one.steps + 1), *others],
                [replace(one, noise_multiplier=data.draw(st.floats(0.3, 1)) * 0.999), *others]
                if one.noise_multiplier >= 1
                else [*drawn, *others],
                [replace(one, sampling_rate=data.draw(st.floats(one.sampling_rate, 1))), *others],
            ]
        )
    )
    assert budget.epsilon_of(worse) >= budget.epsilon_of(drawn) * (1 - 1e-9)


@given(data=st.data(), drawn=charges(), delta=DELTAS)
def test_the_filter_knows_no_order(data, drawn, delta):
    """Of charges, nor whether equal ones are charged together."""
    budget = RenyiFilter(epsilon=8, delta=delta)
    split = [
        replace(c, steps=part) for c in drawn for part in (c.steps // 3, c.steps - c.steps // 3)
    ]
    assert budget.epsilon_of(data.draw(st.permutations(split))) == budget.epsilon_of(drawn)


@given(drawn=charges(), delta=DELTAS, limit=st.floats(0.05, 60))
def test_the_filter_allows_what_its_epsilon_covers(drawn, delta, limit):
    """And nothing else."""
    budget = RenyiFilter(epsilon=limit, delta=delta)
    assert budget.allows(drawn) == (budget.epsilon_of(drawn) <= limit)


@settings(max_examples=30)
@given(data=st.data(), drawn=charges(), delta=DELTAS)
def test_fixed_charges_cost_no_more_than_chosen_ones(data, drawn, delta):
    """Within what discretisation adds; their order does not matter."""
    fixed = epsilon(drawn, delta=delta)
    assert 0 <= fixed <= RenyiFilter(epsilon=8, delta=delta).epsilon_of(drawn) * 1.001 + 1e-3
    assert epsilon(data.draw(st.permutations(drawn)), delta=delta) == fixed


@settings(max_examples=30)
@given(drawn=charges(), delta=DELTAS)
def test_a_further_charge_is_no_refund(drawn, delta):
    """Within what discretisation adds."""
    alone, more = epsilon(drawn, delta=delta), epsilon([*drawn, drawn[0]], delta=delta)
    assert more >= 0.995 * alone - 2e-3
