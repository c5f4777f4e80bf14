"""Attacks on an attempt, each at the bound that withstands it, and one below, where it succeeds."""

import hashlib

import numpy as np
import pytest

from fedlora.errors import FedloraError, SecureSumError
from fedlora.privacy.secure_aggregation.terms import Terms
from fedlora.secure_sum.v1 import secure_sum_pb2 as pb
from simulations.secure_sum_lies import (
    scatter_survivors,
    sites_of,
    split_inboxes,
    split_survivors,
)
from simulations.secure_sum_spy import Spy
from simulations.secure_sums import CONTEXT, Cohort, losing, new_vectors, plain_sum, terms_for

BOUNDS = [(4, 0), (5, 1), (6, 0), (7, 2), (8, 3), (9, 1)]
"""Members and colluders."""


def cohort_of(members, *, one_below=False, **facts):
    """Return members at the least threshold that stands an aggregator that lies, or one below."""
    least = (members + facts.get("colluders", 0)) // 2 + 1
    terms = terms_for(members, **{"threshold": least, **facts})
    if one_below:
        object.__setattr__(terms, "threshold", terms.threshold - 1)  # as no recipe can
    vectors = new_vectors(members, size=9, generator=np.random.default_rng(members))
    return Cohort(vectors, terms)


def opened_of(cohort, colluders):
    """Return the sums that are known to the aggregator and its colluders."""
    return Spy(cohort=cohort, colluders=sites_of(cohort, colluders)[2]).sums()


@pytest.mark.parametrize(("members", "colluders"), BOUNDS)
def test_a_split_view_of_survivors_opens_nobody(members, colluders):
    """With 2t > n + |C| one half of the members is believed at most, however they are split."""
    believed_once = False
    for first in range(members - colluders):
        cohort = cohort_of(members, colluders=colluders)
        victim, others, _ = sites_of(cohort, colluders)
        believed = split_survivors(cohort, colluders, first=first)
        sums = opened_of(cohort, colluders)
        assert believed <= 1
        assert set(sums) <= {frozenset((victim, *others)), frozenset(others)}
        believed_once |= bool(believed)
    assert believed_once


@pytest.mark.parametrize(("members", "colluders"), BOUNDS)
def test_one_below_a_split_view_opens_a_member(members, colluders):
    """With 2t = n + |C|, or one less, both halves are believed, and a vector lies open."""
    cohort = cohort_of(members, colluders=colluders, one_below=True)
    victim, *_ = sites_of(cohort, colluders)
    first = cohort.terms.threshold - colluders - 1
    believed = split_survivors(cohort, colluders, first=first)
    sums = opened_of(cohort, colluders)
    assert believed == 2
    assert np.array_equal(sums[frozenset([victim])], cohort.vectors[victim])


@pytest.mark.parametrize(("members", "colluders"), BOUNDS)
def test_a_member_masks_with_none_but_a_majority(members, colluders):
    """With 2t > n + |C| too few could drop out for it to be masked with them alone."""
    cohort = cohort_of(members, colluders=colluders)
    victim, *_ = sites_of(cohort, colluders)
    split_inboxes(cohort, colluders)
    assert not any(victim in sites for sites in opened_of(cohort, colluders))
    assert "have shared their secrets" in cohort.lost[victim]


@pytest.mark.parametrize(("members", "colluders"), BOUNDS)
def test_one_below_split_inboxes_open_a_member(members, colluders):
    """Then all its masks are with those whose keys are revealed."""
    cohort = cohort_of(members, colluders=colluders, one_below=True)
    victim, *_ = sites_of(cohort, colluders)
    split_inboxes(cohort, colluders)
    sums = opened_of(cohort, colluders)
    assert np.array_equal(sums[frozenset([victim])], cohort.vectors[victim])


@pytest.mark.parametrize(("members", "threshold", "colluders"), [(10, 6, 0), (12, 8, 2), (9, 5, 0)])
def test_signatures_keep_survivors_from_being_scattered(members, threshold, colluders):
    """Each member may be told of others: that no secret has both its shares is not enough.

    The same terms without signatures, which trust the aggregator, do not stand one that lies.
    """
    signed = cohort_of(members, threshold=threshold, colluders=colluders)
    scatter_survivors(signed, colluders)
    assert signed.lost == signed.revealed == {}
    assert opened_of(signed, colluders) == {}
    trusting = cohort_of(members, threshold=threshold, colluders=colluders, signed=False)
    scatter_survivors(trusting, colluders)
    victim, *_ = sites_of(trusting, colluders)
    sums = opened_of(trusting, colluders)
    assert np.array_equal(sums[frozenset([victim])], trusting.vectors[victim])


@pytest.mark.parametrize("members", [3, 7])
def test_colluders_below_the_threshold_open_nothing(members):
    """Their shares fit every secret; one colluder more opens all that was masked.

    That fewer shares leave all secrets equally likely is what ``tests/properties`` shows of them.
    """
    cohort = cohort_of(members, threshold=members, colluders=members - 1)
    cohort.mask(cohort.share(cohort.advertise()))
    sites = sorted(cohort.vectors)
    assert Spy(cohort=cohort, colluders=sites[1:]).sums() == {}
    object.__setattr__(cohort.terms, "threshold", members - 1)
    assert Spy(cohort=cohort, colluders=sites[1:]).sums() == {}  # the shares are of another degree
    below = cohort_of(members, threshold=members, colluders=members - 1, one_below=True)
    below.mask(below.share(below.advertise()))
    sums = Spy(cohort=below, colluders=sites[1:]).sums()
    assert np.array_equal(sums[frozenset([sites[0]])], below.vectors[sites[0]])


@pytest.mark.parametrize(("wrong", "right"), [(0, True), (2, True), (3, False)])
def test_wrong_shares_are_stood_while_the_threshold_of_right_ones_is_left(wrong, right):
    """Of seven at the threshold five, two may lie; with three the sum stays closed, for good."""

    def change(stage, site, answer):
        if stage != "reveal" or site >= f"site-{wrong:04}":
            return answer
        revealed = pb.Revealed.FromString(answer)
        for share in (*revealed.seeds, *revealed.mask_keys):
            share.share = bytes(1) + hashlib.sha256(share.share).digest()
        return revealed.SerializeToString()

    cohort = cohort_of(7, threshold=5)
    cohort.change = change
    if right:
        assert np.array_equal(cohort.total(), plain_sum(cohort.vectors, cohort.vectors))
    else:
        with pytest.raises(SecureSumError, match=r"The secret of site-\d+ cannot be opened"):
            cohort.total()


@pytest.mark.parametrize("share", [b"", bytes(32), bytes(34), b"\xff" * 33], ids=repr)
def test_what_is_no_share_counts_as_none(share):
    """One member cannot keep the others' sum closed by it."""

    def change(stage, site, answer):
        if stage != "reveal" or site != "site-0000":
            return answer
        revealed = pb.Revealed.FromString(answer)
        for each in revealed.seeds:
            each.share = share
        return revealed.SerializeToString()

    cohort = cohort_of(4)
    cohort.change = change
    assert np.array_equal(cohort.total(), plain_sum(cohort.vectors, cohort.vectors))


def test_of_two_there_is_no_sum():
    """Each would subtract its own: neither terms nor a roster nor survivors of two are taken."""
    with pytest.raises(SecureSumError, match="must be at least 3"):
        Terms(members=2, threshold=2, fewest=2, colluders=0, signed=True)
    cohort = cohort_of(4, threshold=3)
    cohort.change = losing({"site-0000": "advertise", "site-0001": "advertise"})
    with pytest.raises(SecureSumError, match="2 members have trained, but at least 3 must"):
        cohort.total()
    cohort = cohort_of(4, threshold=3)
    cohort.change = losing({"site-0000": "mask", "site-0001": "mask"})
    with pytest.raises(SecureSumError, match="2 members have sent a masked vector"):
        cohort.total()


def test_an_attempt_that_is_played_again_gives_nothing():
    """What was sealed in one is opened in no other, although the members are the same."""
    before, cohort = cohort_of(4), cohort_of(4)
    cohort = Cohort(cohort.vectors, cohort.terms, signers=before.signers)
    old_rosters = before.advertise()
    old = before.share(old_rosters)
    new = cohort.share(cohort.advertise())
    site = "site-0000"
    mixed = pb.Inbox(sealed=[*new[site].sealed[:-1], old[site].sealed[-1]])
    with pytest.raises(SecureSumError, match="The shares of site-0003 are broken"):
        cohort.answer(site, mixed)
    assert site not in cohort.masked


def test_a_member_is_played_by_none_but_itself():
    """Its keys of an attempt before are in a roster as good as its own, but nothing follows.

    What the others are shown from it was sealed in that attempt, and they mask with it only once
    they can open that: the keys of its masks may have become known then.
    """
    before = cohort_of(5)
    shares = before.share(before.advertise())
    cohort = Cohort(before.vectors, before.terms, signers=before.signers)
    absent = "site-0004"
    cohort.participants[absent] = before.participants[absent]
    said = before.participants[absent]._own
    for site in sorted(cohort.vectors.keys() - {absent}):
        cohort.collector.take_advertisement(site, cohort.participants[site].advertise())
    cohort.collector.take_advertisement(absent, said)
    rosters = dict(cohort.collector.rosters())
    del rosters[absent]
    inboxes = cohort.share(rosters)
    old = next(each for each in shares["site-0000"].sealed if each.site == absent)
    with pytest.raises(SecureSumError, match="The shares of site-0004 are broken"):
        cohort.answer("site-0000", pb.Inbox(sealed=[*inboxes["site-0000"].sealed, old]))


def test_different_adapters_are_summed_with_nobody():
    """Who was sent another is left out; the others see nothing of it in their roster."""
    cohort = cohort_of(5, threshold=4)
    cohort = Cohort(
        cohort.vectors,
        cohort.terms,
        context=lambda site: bytes(32) if site == "site-0000" else CONTEXT,
    )
    assert np.array_equal(
        cohort.total(), plain_sum(cohort.vectors, cohort.vectors.keys() - {"site-0000"})
    )


def test_a_broken_seal_loses_those_whom_it_was_for():
    """They say from whom it came, and the others are summed."""

    def change(stage, site, answer):
        if stage != "share" or site != "site-0001":
            return answer
        shares = pb.Shares.FromString(answer)
        shares.sealed[0].text = shares.sealed[0].text[:-1] + b"?"
        return shares.SerializeToString()

    cohort = cohort_of(5, threshold=4)
    cohort.change = change
    total = cohort.total()
    assert "The shares of site-0001 are broken: " in cohort.lost["site-0000"]
    assert np.array_equal(total, plain_sum(cohort.vectors, cohort.vectors.keys() - {"site-0000"}))


def test_nobody_is_opened_where_too_few_reveal():
    """An attempt that is abandoned in its last stage leaves each vector under its masks."""
    cohort = cohort_of(5, threshold=4)
    cohort.change = losing({"site-0000": "mask", "site-0001": "sign", "site-0002": "reveal"})
    with pytest.raises(FedloraError):
        cohort.total()
    assert Spy(cohort=cohort).sums() == {}
