"""Who shares masks with whom: degrees against other computations, and the graph's form."""

import math
import random
from itertools import pairwise

import pytest
from scipy.stats import hypergeom

from fedlora.errors import SecureSumError
from fedlora.privacy.secure_aggregation import graph
from fedlora.privacy.secure_aggregation.graph import derived, neighbours


@pytest.mark.parametrize(
    ("members", "corrupt", "dropout", "expected"),
    [
        (100, 0.33, 0.33, (68, 34)),
        (1_000, 0.33, 0.33, (286, 150)),
        (10_000, 0.33, 0.33, (422, 221)),
        (100, 0.05, 0.33, (28, 6)),
        (1_000, 0.05, 0.33, (72, 24)),
        (10_000, 0.05, 0.33, (86, 29)),
        (100, 0.33, 0.05, (34, 29)),
        (1_000, 0.33, 0.05, (78, 60)),
        (10_000, 0.33, 0.05, (92, 70)),
    ],
)
def test_degrees_are_those_of_the_papers_authors(members, corrupt, dropout, expected):
    """As the tests of Google's implementation have them, which loses one sum in 2²⁰.

    fcp/secagg/server/graph_parameter_finder_test.cc of github.com/google-parfait/federated-compute,
    honest-but-curious.
    """
    assert derived(members, corrupt=corrupt, dropout=dropout, correctness=20) == expected


@pytest.mark.parametrize(
    ("members", "corrupt", "dropout"),
    [(101, 0.05, 0.05), (101, 0.33, 0.1), (1_000, 0.1, 0.05), (1_000, 0, 0.05), (1_000, 0.1, 0)],
)
def test_probabilities_are_within_their_bounds(members, corrupt, dropout):
    """By SciPy's tails; a degree less, two of them would not be, whatever the threshold."""

    def hold(degree, threshold):
        bad, lost = int(corrupt * members), int(dropout * members)
        caught = hypergeom.logsf(threshold - 1, members - 1, bad, degree)
        starved = hypergeom.logsf(degree - threshold, members - 1, lost, degree)
        pairs = members * (members - degree - 1) / 2
        apart = math.comb(bad + lost, degree) / math.comb(members, degree) * pairs
        return (
            caught + math.log(members) <= -41 * math.log(2)
            and starved + math.log(members) <= -30 * math.log(2)
            and apart <= 2**-41
        )

    degree, threshold = derived(members, corrupt=corrupt, dropout=dropout)
    assert hold(degree, threshold)
    assert threshold == 2 or not hold(degree, threshold - 1)
    assert not any(hold(degree - 2, other) for other in range(2, degree - 1))


def test_degrees_grow_as_the_logarithm():
    """Ten times the members cost a number of neighbours that does not grow."""
    degrees = [derived(10**power, corrupt=0.1, dropout=0.05)[0] for power in (3, 4, 5)]
    steps = [b - a for a, b in pairwise(degrees)]
    assert all(0 <= step <= 8 for step in steps)
    assert degrees[-1] < 60


def test_tails_are_exact():
    """Against all the ways to draw, counted one by one."""
    for population, marked, draws in [(7, 3, 4), (9, 6, 5), (5, 0, 3), (6, 6, 2)]:
        ways = [
            math.comb(marked, x) * math.comb(population - marked, draws - x)
            for x in range(draws + 1)
        ]
        for number in range(1, draws + 1):
            tail = graph.Fraction(sum(ways[number:]), math.comb(population, draws))
            if 0 < tail < 1:
                assert graph._rarely(population, marked, draws, at_most=tail) <= number
                assert graph._rarely(population, marked, draws, at_most=tail * 0.999) == number + 1


@pytest.mark.parametrize(
    ("members", "corrupt", "dropout"),
    [(101, 0.5, 0.5), (1_000, 0.7, 0.4), (3, 0, 0), (101, 0.98, 0)],
)
def test_rates_that_no_graph_survives_are_refused(members, corrupt, dropout):
    """With advice."""
    with pytest.raises(SecureSumError, match=f"No sparse graph of {members} members is safe"):
        derived(members, corrupt=corrupt, dropout=dropout)


@pytest.mark.parametrize("rate", [-0.1, 1, 2, math.nan])
def test_rates_are_shares(rate):
    """Of all members."""
    with pytest.raises(SecureSumError, match="at least 0 and below 1"):
        derived(1_000, corrupt=rate, dropout=0.1)
    with pytest.raises(SecureSumError, match="at least 0 and below 1"):
        derived(1_000, corrupt=0.1, dropout=rate)


def test_a_rate_is_read_as_it_is_written():
    """0.29 of 100 are 29, although its binary fraction is less."""
    assert derived(100, corrupt=0.29, dropout=0) == derived(100, corrupt=0.29999, dropout=0)
    assert derived(100, corrupt=0.29, dropout=0) != derived(100, corrupt=0.289, dropout=0)


@pytest.mark.parametrize("degree", [None, 2, 4])
def test_in_a_complete_graph_everybody_is_everybodys_neighbour(degree):
    """But nobody its own; also where there are too few for the degree."""
    assert neighbours(3, degree=degree) == [(1, 2), (0, 2), (0, 1)]
    assert neighbours(1, degree=degree) == [()]


@pytest.mark.parametrize(("count", "degree"), [(4, 2), (8, 6), (200, 28), (1_000, 42)])
def test_a_sparse_graph_is_regular_and_symmetric(count, degree):
    """Nobody is its own neighbour, or one twice."""
    graph = neighbours(count, degree=degree)
    assert len(graph) == count
    for member, near in enumerate(graph):
        assert len(set(near) - {member}) == len(near) == degree
        assert list(near) == sorted(near)
        assert all(member in graph[other] for other in near)


def test_a_sparse_graph_stays_connected_without_corrupt_and_dropped_ones():
    """Whoever they are: here any 15 %, 20 times; it fails with a probability below 2⁻³⁶."""
    draw = random.Random(0)
    degree, _ = derived(200, corrupt=0.1, dropout=0.05)
    for _ in range(20):
        graph = neighbours(200, degree=degree)
        left = set(draw.sample(range(200), 170))
        seen, border = set(), {min(left)}
        while border:
            seen |= border
            border = {j for i in border for j in graph[i]} & left - seen
        assert seen == left


def test_sparse_graphs_are_random():
    """Nobody knows beforehand whose neighbour it will be; two are alike once in 10³⁴ times."""
    assert len({neighbours(200, degree=28)[0] for _ in range(3)}) == 3
