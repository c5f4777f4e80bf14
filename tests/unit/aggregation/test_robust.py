"""The rules that weigh clients: against slow ways from the vectors themselves, and attackers."""

import itertools
import statistics

import pytest
import torch
from torch import Tensor

from fedlora import products
from fedlora.adapter import AdapterUpdate
from fedlora.aggregation.robust import (
    RULES,
    Vote,
    cosine_filter,
    geometric_median,
    multi_krum,
    norm_bound,
)
from fedlora.methods import COORDINATE_WISE, Robust
from tests.strategies import make_spec, make_state, make_update

HONEST = 7


def drawn(clients: int, *, seed: int = 0, size: int = 40) -> Tensor:
    """Return ``(clients, size)`` changes that share a direction, as honest ones do."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(size, generator=generator, dtype=torch.float64)
    return shared + torch.randn(clients, size, generator=generator, dtype=torch.float64) / 2


def judged(rule, changes: Tensor, *, weights=None, attackers: int = 0) -> list[Vote]:
    return rule(changes @ changes.T, weights or [1.0] * len(changes), attackers=attackers)


def combined(votes: list[Vote], changes: Tensor) -> Tensor:
    """Return the mean as a strategy makes it of the votes."""
    kept = [(vote, change) for vote, change in zip(votes, changes, strict=True) if vote.share]
    total = sum(vote.weight for vote, _ in kept)
    return sum((v.weight * v.share / total * c for v, c in kept), torch.zeros_like(changes[0]))


def test_every_rule_that_weighs_clients_is_in_the_table():
    """The names are the recipe's."""
    assert set(RULES) | COORDINATE_WISE | {"none"} == set(Robust.__args__)


@pytest.mark.parametrize("rule", RULES.values())
@pytest.mark.parametrize("clients", [1, 2, 3])
def test_few_clients_and_duplicates_are_no_trouble(rule, clients):
    """Equal changes are all taken in, in equal parts of their weights."""
    changes = drawn(1, seed=clients).repeat(clients, 1)
    weights = [1.0 + client for client in range(clients)]
    votes = judged(rule, changes, weights=weights)
    torch.testing.assert_close(combined(votes, changes), changes[0])
    total = sum(vote.weight for vote in votes)
    for vote, weight in zip(votes, weights, strict=True):
        assert vote.weight / total == pytest.approx(weight / sum(weights))
        assert vote.share == pytest.approx(1.0)
        assert not vote.reason


@pytest.mark.parametrize("rule", RULES.values())
@pytest.mark.parametrize("clients", [1, 2, 5])
def test_no_change_at_all_is_no_trouble(rule, clients):
    """Zero changes are all taken in."""
    votes = judged(rule, torch.zeros(clients, 3, dtype=torch.float64))
    assert [(vote.share, vote.reason) for vote in votes] == [(1.0, "")] * clients
    assert all(vote.weight > 0 for vote in votes)


@pytest.mark.parametrize("rule", RULES.values())
def test_one_zero_change_among_others_is_no_trouble(rule):
    """And harms nobody else."""
    changes = torch.cat([drawn(4), torch.zeros(1, 40, dtype=torch.float64)])
    votes = judged(rule, changes)
    assert all(vote.share > 0 and vote.weight > 0 for vote in votes)


@pytest.mark.parametrize("rule", RULES.values())
def test_an_excluded_client_has_a_reason_and_no_other_has(rule):
    """The record must be able to say why."""
    changes = torch.cat([drawn(6), -5 * drawn(2, seed=3)])
    for vote in judged(rule, changes, attackers=2):
        assert bool(vote.reason) == (vote.share == 0)
        assert 0 <= vote.share <= 1
        assert vote.weight > 0


@pytest.mark.parametrize("rule", RULES.values())
@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_unit_of_changes_does_not_matter(rule, scale):
    """Votes are the same for changes in other units."""
    changes = torch.cat([drawn(6), -3 * drawn(1, seed=3)])
    ours, theirs = (judged(rule, s * changes, attackers=1) for s in (1.0, scale))
    for one, other in zip(ours, theirs, strict=True):
        assert one.weight == pytest.approx(other.weight, rel=1e-6)
        assert one.share == pytest.approx(other.share, rel=1e-6)


@pytest.mark.parametrize("attack", [-1.0, -10.0, -1e6, 1e6])
@pytest.mark.parametrize("name", ["multi-krum", "geometric-median", "cosine-filter"])
def test_a_minority_that_turns_or_scales_does_little(name, attack):
    """Two of nine clients send the honest mean times something: the result stays near it."""
    honest = drawn(HONEST)
    center = honest.mean(dim=0)
    spread = float((honest - center).norm(dim=1).max())
    changes = torch.cat([honest, (attack * center).repeat(2, 1)])
    result = combined(judged(RULES[name], changes, attackers=2), changes)
    assert float((result - center).norm()) < spread
    plain = changes.mean(dim=0)
    assert float((plain - center).norm()) > float((result - center).norm())


def test_norm_bound_shrinks_to_the_median_norm():
    """And leaves what is below; a scaled attacker counts as one client of ordinary size."""
    changes = torch.cat([drawn(4), 1e6 * drawn(1, seed=2)])
    norms = changes.norm(dim=1).tolist()
    bound = statistics.median(norms)
    for vote, norm in zip(judged(norm_bound, changes), norms, strict=True):
        assert vote.share * norm == pytest.approx(min(norm, bound))
        assert vote.weight == 1.0
    even = judged(norm_bound, torch.tensor([[1.0], [3.0]], dtype=torch.float64))
    assert [vote.share for vote in even] == [1.0, pytest.approx(1 / 3)]


def test_norm_bound_excludes_when_most_send_nothing():
    """The median norm is zero, so there is nothing that another client could be shrunk to."""
    votes = judged(norm_bound, torch.tensor([[0.0], [0.0], [2.0]], dtype=torch.float64))
    assert [vote.share for vote in votes] == [1.0, 1.0, 0.0]
    assert "no change at all" in votes[2].reason


@pytest.mark.parametrize(("clients", "attackers"), [(5, 1), (9, 3), (9, 0), (4, 1), (2, 1)])
def test_multi_krum_keeps_those_with_the_nearest_neighbours(clients, attackers):
    """As computed from the vectors, one distance at a time; weights stay as they were."""
    changes = drawn(clients, seed=clients)
    scores = []
    for one in range(clients):
        apart = [
            float((changes[one] - changes[other]).square().sum())
            for other in range(clients)
            if other != one
        ]
        scores.append(sum(sorted(apart)[: max(1, clients - attackers - 2)]))
    expected = set(sorted(range(clients), key=scores.__getitem__)[: clients - attackers])
    weights = [1.0 + client for client in range(clients)]
    votes = judged(multi_krum, changes, weights=weights, attackers=attackers)
    assert [vote.weight for vote in votes] == weights
    kept = {client for client, vote in enumerate(votes) if vote.share}
    assert len(kept) == clients - attackers
    # Two clients are as far from each other as the other way round, but for rounding.
    assert clients == 2 or kept == expected


def test_the_geometric_median_minimises_the_weighted_distance():
    """No step of a slow descent from it, and none of many random ones, comes lower."""
    changes = torch.cat([drawn(5), -4 * drawn(1, seed=2)])
    weights = [1.0, 2.0, 1.0, 0.5, 1.0, 1.5]

    def cost(point: Tensor) -> float:
        apart = (changes - point).norm(dim=1)
        return float((apart * torch.tensor(weights, dtype=torch.float64)).sum())

    votes = judged(geometric_median, changes, weights=weights)
    found = combined(votes, changes)
    assert sum(vote.weight for vote in votes) == pytest.approx(sum(weights))
    generator = torch.Generator().manual_seed(5)
    for size in (1.0, 1e-2, 1e-4):
        steps = torch.randn(200, 40, generator=generator, dtype=torch.float64)
        assert all(cost(found + size * step) >= cost(found) for step in steps)


def test_the_geometric_median_of_three_on_a_line_is_the_middle_one():
    """It may be a client's very change, where plain Weiszfeld would divide by zero."""
    changes = torch.tensor([[1.0], [2.0], [50.0]], dtype=torch.float64)
    found = combined(judged(geometric_median, changes), changes)
    assert float(found) == pytest.approx(2.0, abs=1e-4)


def test_the_geometric_median_follows_a_majority_of_zeros():
    """Where most send nothing, the rest do not move it."""
    changes = torch.tensor([[0.0], [0.0], [0.0], [5.0]], dtype=torch.float64)
    found = combined(judged(geometric_median, changes), changes)
    assert abs(float(found)) < 1e-6


def test_cosine_filter_excludes_who_points_elsewhere():
    """By the median of the cosines, one pair at a time; the rest are bounded in norm."""
    changes = torch.cat([drawn(5), -drawn(2), 1e3 * drawn(1, seed=0)])
    votes = judged(cosine_filter, changes)
    kept = []
    for one, change in enumerate(changes):
        cosines = [
            float(torch.cosine_similarity(change, other, dim=0))
            for index, other in enumerate(changes)
            if index != one
        ]
        if statistics.median_high(cosines) > 0:
            kept.append(one)
    assert [client for client, vote in enumerate(votes) if vote.share] == kept
    bound = statistics.median_low([float(changes[client].norm()) for client in kept])
    for client in kept:
        assert votes[client].share * float(changes[client].norm()) <= bound * (1 + 1e-12)
    assert "the median cosine with the others is -" in votes[5].reason


@pytest.mark.parametrize("honest", [2, 3, 4, 5])
def test_cosine_filter_keeps_a_majority_that_agrees(honest):
    """One client fewer that points the other way, however many there are."""
    changes = torch.cat([drawn(honest), -drawn(honest - 1, seed=0)])
    votes = judged(cosine_filter, changes)
    assert [vote.share > 0 for vote in votes] == [True] * honest + [False] * (honest - 1)


def test_cosine_filter_has_no_verdict_on_two_that_disagree():
    """Nobody could say which of the two is hostile, so both are excluded."""
    votes = judged(cosine_filter, torch.tensor([[1.0, 0.0], [-1.0, 0.1]], dtype=torch.float64))
    assert [vote.share for vote in votes] == [0.0, 0.0]


@pytest.mark.parametrize("name", RULES)
def test_a_turned_gauge_gains_nothing(name):
    """In product space an update as 100·B and A/100 gets the vote of the honest one."""
    spec = make_spec()
    start = make_state(spec, seed=9)
    updates: list[AdapterUpdate] = []
    for seed in range(5):
        update = make_update(spec, seed=seed)
        update.values.mul_(0.1)
        updates.append(update)
    turned = start.plus(updates[0])
    for _, down, up in turned.pairs():
        down.div_(100)
        up.mul_(100)
    hostile = AdapterUpdate(spec=spec, values=turned.minus(start), num_examples=1)

    def votes(sent: list[AdapterUpdate]) -> list[Vote]:
        gram = torch.zeros(5, 5, dtype=torch.float64)
        for i, j in itertools.product(range(5), repeat=2):
            gram[i, j] = products.change_inner(start, sent[i], sent[j])
        return RULES[name](gram, [1.0] * 5, attackers=1)

    for honest, other in zip(votes(updates), votes([hostile, *updates[1:]]), strict=True):
        assert other.weight == pytest.approx(honest.weight, rel=1e-3)
        assert other.share == pytest.approx(honest.share, rel=1e-3)
