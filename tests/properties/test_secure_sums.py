"""What holds of a secure sum for all members, vectors and losses."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlora.errors import SecureSumError
from fedlora.privacy.secure_aggregation.graph import derived
from fedlora.privacy.secure_aggregation.terms import Terms
from simulations.secure_sum_spy import Spy
from simulations.secure_sums import STAGES, Cohort, losing, new_vectors, plain_sum, terms_for


@st.composite
def cohorts(draw):
    """Draw a few members, their vectors, a threshold that is possible, and who is lost when."""
    members, signed = draw(st.integers(3, 12)), draw(st.booleans())
    threshold = draw(st.integers(max(3, members // 2 + 1 if signed else 3), members))
    terms = terms_for(members, threshold=threshold, colluders=0, signed=signed)
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    vectors = new_vectors(members, size=draw(st.integers(1, 9)), generator=generator)
    most = draw(st.integers(0, members))
    unlucky = draw(st.permutations(sorted(vectors)))[:most]
    lost = {site: draw(st.sampled_from(STAGES)) for site in unlucky}
    return Cohort(vectors, terms, change=losing(lost)), lost


def left_after(cohort, lost, stage):
    """Return the members that came through a stage and all before it."""
    gone = STAGES[: STAGES.index(stage) + 1]
    return {site for site in cohort.vectors if lost.get(site) not in gone}


def need(cohort, lost):
    """Return how many of those that are asked answer each stage that there is."""
    in_time = {stage: len(left_after(cohort, lost, stage)) for stage in STAGES[:3]}
    summed = left_after(cohort, lost, "mask")  # whoever is in the sum is asked to sign and reveal
    late = STAGES[3:] if cohort.terms.signed else STAGES[4:]
    return in_time | {stage: sum(lost.get(site) != stage for site in summed) for stage in late}


@given(cohorts())
@settings(max_examples=60)
def test_a_sum_is_the_plain_one_of_those_who_came_through(drawn):
    """Whenever the threshold came through each stage; else there is none.

    Then, if it was before the last stage, nobody has revealed anything. In either case the sum of
    all survivors is known or nothing is.
    """
    cohort, lost = drawn
    answered = need(cohort, lost)
    survivors = left_after(cohort, lost, "mask")
    if min(answered.values()) >= cohort.terms.threshold:
        assert np.array_equal(cohort.total(), plain_sum(cohort.vectors, survivors))
        assert cohort.collector.survivors == tuple(sorted(survivors))
    else:
        with pytest.raises(SecureSumError):
            cohort.total()
        before = min(n for stage, n in answered.items() if stage != "reveal")
        assert bool(cohort.revealed) == (before >= cohort.terms.threshold)
    revealed = {site: sent for site, sent in cohort.revealed.items() if lost.get(site) != "reveal"}
    cohort.revealed = revealed  # what the aggregator heard
    enough = len(revealed) >= cohort.terms.threshold
    assert set(Spy(cohort=cohort).sums()) == ({frozenset(survivors)} if enough else set())


@pytest.mark.parametrize("members", [30, pytest.param(100, marks=pytest.mark.slow)])
def test_larger_cohorts_are_summed(members):
    """At the usual threshold, with a tenth lost in each stage but two."""
    vectors = new_vectors(members, size=7, generator=np.random.default_rng(members))
    sites = sorted(vectors)
    tenth = members // 10
    lost = {
        site: stage
        for number, stage in enumerate(("share", "mask", "reveal"))
        for site in sites[number * tenth : (number + 1) * tenth]
    }
    cohort = Cohort(vectors, terms_for(members), change=losing(lost))
    assert np.array_equal(cohort.total(), plain_sum(vectors, sites[2 * tenth :]))
    assert set(Spy(cohort=cohort).sums()) == {frozenset(sites[2 * tenth :])}


def sparse_cohort(members, *, dropped, corrupt, lost):
    """Return members in the graph that is derived for them, and who of them is lost when."""
    fewest = members - dropped
    degree, threshold = derived(fewest, corrupt=corrupt, dropped=dropped)
    terms = Terms(
        members=members,
        threshold=threshold,
        fewest=fewest,
        colluders=min(corrupt, threshold - 1),
        signed=False,
        degree=degree,
        most_lost=dropped,
    )
    assert degree < members - 1
    vectors = new_vectors(members, size=3, generator=np.random.default_rng(members))
    draw = np.random.default_rng(lost)
    unlucky = draw.choice(sorted(vectors), size=lost, replace=False)
    stages = draw.choice(["share", "mask", "reveal"], size=lost)
    when = dict(zip(unlucky.tolist(), stages.tolist(), strict=True))
    return Cohort(vectors, terms, change=losing(when)), when


@pytest.mark.parametrize("corrupt", [0, 5, 39])
def test_sparse_graphs_sum_what_the_complete_one_would(corrupt):
    """As many as the degree counts on may be lost, at any stage once the roster stands."""
    cohort, lost = sparse_cohort(120, dropped=6, corrupt=corrupt, lost=6)
    survivors = left_after(cohort, lost, "mask")
    assert np.array_equal(cohort.total(), plain_sum(cohort.vectors, survivors))
    assert set(Spy(cohort=cohort).sums()) == {frozenset(survivors)}


def test_one_loss_more_than_a_sparse_graph_stands_ends_it():
    """Before anything is revealed, although a sum could be opened: it might tell of too few."""
    cohort, lost = sparse_cohort(120, dropped=6, corrupt=5, lost=0)
    assert lost == {}
    cohort.change = losing(dict.fromkeys(sorted(cohort.vectors)[:7], "mask"))
    with pytest.raises(SecureSumError, match="113 members have sent a masked vector"):
        cohort.total()
    assert cohort.revealed == {}


@given(st.integers(8, 20), st.integers(1, 2), st.data())
@settings(max_examples=40)
def test_any_graph_sums_rightly_or_not_at_all(members, half, data):
    """Of whatever degree, and whoever is lost: a sum is that of all survivors."""
    degree = 2 * half
    threshold = data.draw(st.integers(2, degree + 1))
    terms = Terms(
        members=members,
        threshold=threshold,
        fewest=threshold,
        colluders=0,
        signed=False,
        degree=degree,
    )
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    vectors = new_vectors(members, size=3, generator=generator)
    lost = data.draw(st.dictionaries(st.sampled_from(sorted(vectors)), st.sampled_from(STAGES)))
    cohort = Cohort(vectors, terms, change=losing(lost))
    try:
        total = cohort.total()
    except SecureSumError:
        return
    assert np.array_equal(total, plain_sum(vectors, cohort.collector.survivors))
