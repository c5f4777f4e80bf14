"""Measures of an attack on members."""

import numpy as np
import pytest

from fedlora.privacy.audit.membership import Membership, auc, true_positives


def test_the_area_is_the_chance_of_a_right_order():
    """Against all pairs, of which ties are half right."""
    draw = np.random.default_rng(0)
    members, others = draw.integers(0, 9, 60).astype(float), draw.integers(0, 7, 40).astype(float)
    pairs = [(m > o) + (m == o) / 2 for m in members for o in others]
    assert auc(members, others) == pytest.approx(np.mean(pairs))


def test_true_positives_are_above_what_others_may_pass():
    """Of 200 others two may; a tie with the third is no hit."""
    others = np.arange(200.0)
    assert true_positives(np.array([197.0, 197.5, 198.0, 300.0]), others) == 0.75
    assert true_positives(np.array([0.0]), others, share=1.0) == 1.0
    assert true_positives(np.array([5.0, 6.0]), np.arange(6.0)) == 0.5


def test_a_perfect_attack_and_none():
    """The measures' ends, with intervals that hold them."""
    draw = np.random.default_rng(1)
    scores = draw.standard_normal(1500)
    found = Membership.of(scores[:500] + 10, scores[500:])
    assert (found.auc.value, found.tpr.value, found.tpr.low) == (1, 1, 1)
    found = Membership.of(scores[:500], scores[500:])
    assert (found.members, found.others) == (500, 1000)
    assert found.auc.low < 0.5 < found.auc.high
    assert found.tpr.low <= 0.01 <= found.tpr.high
    assert found.auc.high - found.auc.low < 0.1
    assert found.curve[0][0] == 0
    assert found.curve[-1] == (1, 1)
