"""A smoke test, no proof: what an aggregator sees tells two cohorts of one sum apart by no count.

All that it has of an attempt but the sum is compared with noise, byte by byte, by χ² tests: masked
vectors; what is left of them without the plain ones, without another member's, and without what the
same member sent in another attempt; and the same of a vector that came too late, without the masks
whose keys were revealed. A sound protocol raises an alarm in 10⁹ runs once (masks cannot be
seeded). Masks that leave one word in a hundred as it is are missed less often than that: χ² is then
1,900 in the mean with a standard deviation of 85, and alarms above 440.
"""

import itertools

import numpy as np
import pytest
from scipy.stats import chi2

from fedlora.privacy.secure_aggregation import participant, statements
from simulations.secure_sum_spy import Spy
from simulations.secure_sums import Cohort, losing, new_vectors, plain_sum, terms_for

FALSE_ALARM = 1e-9
SIZE = 2**14
LATE, LAST = "site-0000", "site-0004"
"""Whose vector comes when its mask key was revealed, and whose follows from the sum."""
BARE = "late, without the masks of pairs"
SHOWN = {"site-0000", "site-0001", "site-0002", "site-0003", BARE}


@pytest.fixture(scope="module")
def inputs():
    """Two sets of vectors with one sum: small numbers, and zeros but for one member's."""
    drawn = new_vectors(5, size=SIZE, generator=np.random.default_rng(0))
    some = {site: vector // 2**20 for site, vector in drawn.items()}
    others = {site: np.zeros_like(vector) for site, vector in some.items()}
    others[LAST] = plain_sum(some, some.keys() - {LATE})
    return some, others


def nothing(_cohort, _before):
    """Plant no weakness."""


def reused(*names):
    """Plant that members have secrets that they had in the attempt before."""

    def plant(cohort, before):
        for site, one in cohort.participants.items():
            for name in names:
                setattr(one, name, getattr(before.participants[site], name))

    return plant


def seen(cohort):
    """Return what the aggregator has by site, but for what follows from the sum."""
    cohort.total()
    spy = Spy(cohort=cohort)
    _, keys = spy.opened()
    bare = spy.without_pairs(frozenset([LATE]), keys)
    return {**cohort.masked, BARE: bare}


def looked_at(vectors, *, plant):
    """Return all that is to look like noise, by what it is and whose."""
    first = Cohort(vectors, terms_for(5), change=losing({LATE: "mask"}))
    second = Cohort(vectors, terms_for(5), change=losing({LATE: "mask"}), signers=first.signers)
    plant(second, first)
    one, two = seen(first), seen(second)
    plain = {**vectors, BARE: vectors[LATE]}
    found = {}
    for site in sorted(SHOWN):
        found["masked", site] = one[site]
        found["without the plain", site] = one[site] - plain[site]
        found["without another attempt's", site] = one[site] - two[site]
    for pair in itertools.combinations(sorted(SHOWN - {BARE}), 2):
        found["without another member's", pair] = one[pair[0]] - one[pair[1]]
    return found


def alarms(inputs, *, plant=nothing):
    """Return which tests alarm, by what is looked at."""
    some, others = (looked_at(vectors, plant=plant) for vectors in inputs)
    likely = [(what, uniform(words)) for view in (some, others) for what, words in view.items()]
    likely += [((f"two cohorts' {a}", b), alike(some[a, b], others[a, b])) for a, b in some]
    return {what for what, p in likely if p < FALSE_ALARM / len(likely)}


def uniform(words):
    """Return how likely noise is to have bytes that are less even."""
    counts = np.bincount(words.view(np.uint8), minlength=256)
    expected = counts.sum() / 256
    return chi2.sf(((counts - expected) ** 2 / expected).sum(), df=255)


def alike(one, other):
    """Return how likely two vectors of one distribution are to have bytes that differ more."""
    a, b = (np.bincount(words.view(np.uint8), minlength=256) for words in (one, other))
    return chi2.sf(((a - b) ** 2 / np.maximum(a + b, 1)).sum(), df=255)


def test_two_cohorts_with_one_sum_look_alike(inputs):
    """Nothing but the sum is to be seen, not even of a vector that came too late."""
    one, other = (plain_sum(vectors, vectors.keys() - {LATE}) for vectors in inputs)
    assert np.array_equal(one, other)
    assert alarms(inputs) == set()


def test_a_seed_that_is_used_again_is_seen(inputs):
    """Of who was taken for lost in both attempts, there is nothing left to hide a difference."""
    assert alarms(inputs, plant=reused("_seed")) == {("without another attempt's", BARE)}


def test_masks_of_pairs_that_are_used_again_are_seen(inputs, monkeypatch):
    """It takes keys that are not fresh and masks that are not bound to the roster."""
    reusing = reused("_seed", "_mask_key")
    assert alarms(inputs, plant=reusing) == {("without another attempt's", BARE)}
    monkeypatch.setattr(statements, "masked_about", lambda _, *sites: repr(sorted(sites)).encode())
    found = alarms(inputs, plant=reusing)
    assert found == {("without another attempt's", site) for site in SHOWN}


def test_a_missing_mask_of_its_own_is_seen(inputs, monkeypatch):
    """Who was taken for lost lies open as soon as its vector comes."""
    seeds, add_mask = set(), participant.add_mask
    monkeypatch.setattr(
        participant, "add_mask", lambda values, key: key in seeds or add_mask(values, key)
    )

    def plant(*cohorts):
        seeds.update(one._seed for cohort in cohorts for one in cohort.participants.values())

    expected = {"masked", "without the plain", "without another attempt's"}
    found = alarms(inputs, plant=plant)
    assert {(what, BARE) for what in expected} <= found
    assert {site for _, site in found} == {BARE}


def test_a_mask_that_ends_too_early_is_seen(inputs, monkeypatch):
    """Of each vector the last word in a hundred is as it was."""
    for name in ("add_mask", "subtract_mask"):
        whole = getattr(participant, name)
        monkeypatch.setattr(
            participant, name, lambda values, key, whole=whole: whole(values[: -SIZE // 100], key)
        )
    found = alarms(inputs)
    assert {("without the plain", site) for site in SHOWN - {BARE}} <= found
