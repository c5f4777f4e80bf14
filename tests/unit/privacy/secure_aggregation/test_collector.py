"""What an aggregator refuses, so that one member cannot keep the others from their sum."""

import numpy as np
import pytest

from fedlora.errors import SecureSumError
from fedlora.privacy.secure_aggregation import statements
from fedlora.secure_sum.v1 import secure_sum_pb2 as pb
from simulations.secure_sums import (
    CONTEXT,
    Cohort,
    losing,
    new_signer,
    new_vectors,
    plain_sum,
    terms_for,
)

LOW_ORDER = [bytes(32), b"\x01" + bytes(31), b"\xec" + b"\xff" * 30 + b"\x7f"]
"""X25519 keys with which everybody has the same secret: 0, 1 and -1 (RFC 7748, section 6.1)."""
ODD = "site-0000"


@pytest.fixture
def cohort():
    """Five members at the threshold four."""
    vectors = new_vectors(5, size=3, generator=np.random.default_rng(0))
    return Cohort(vectors, terms_for(5))


def only(stage, change):
    """Change what one member answers in one stage."""
    return lambda now, site, answer: change(answer) if (now, site) == (stage, ODD) else answer


def sum_of_the_others(cohort):
    """Whether all but one member are summed."""
    others = cohort.vectors.keys() - {ODD}
    return np.array_equal(cohort.total(), plain_sum(cohort.vectors, others))


@pytest.mark.parametrize("field", ["mask_key", "seal_key"])
@pytest.mark.parametrize("key", LOW_ORDER, ids=lambda key: key[:1].hex())
def test_keys_of_low_order_are_refused(cohort, field, key):
    """No other member could agree on a mask with one."""
    keys = {"mask_key": b"m" * 32, "seal_key": b"s" * 32, field: key}
    said = statements.advertised(
        cohort.signers[ODD], site=ODD, context=CONTEXT, seed=bytes(32), **keys
    )
    cohort.change = only("advertise", lambda _: said.SerializeToString())
    assert sum_of_the_others(cohort)
    assert "low order" in cohort.lost[ODD]


def test_one_key_advertises_once(cohort):
    """A second member by it would have all others refuse the roster."""
    cohort.advertise()
    said = statements.advertised(
        cohort.signers[ODD],
        site="sybil",
        context=CONTEXT,
        mask_key=b"m" * 32,
        seal_key=b"s" * 32,
        seed=bytes(32),
    )
    with pytest.raises(SecureSumError, match="has advertised before"):
        cohort.collector.take_advertisement("sybil", said)
    said = statements.advertised(
        new_signer(),
        site=ODD,
        context=CONTEXT,
        mask_key=b"m" * 32,
        seal_key=b"s" * 32,
        seed=bytes(32),
    )
    with pytest.raises(SecureSumError, match="has advertised before"):
        cohort.collector.take_advertisement(ODD, said)


def test_a_member_advertises_for_itself_alone(cohort):
    """Another's name would keep that one out."""
    said = cohort.participants["site-0001"].advertise()
    with pytest.raises(SecureSumError, match="site-0000 advertises the keys of 'site-0001'"):
        cohort.collector.take_advertisement(ODD, said)


def test_who_signs_another_context_is_left_out(cohort):
    """It keeps nobody else out, be it the first to advertise."""
    cohort.participants[ODD].context = bytes(32)
    assert sum_of_the_others(cohort)


@pytest.mark.parametrize("stage", ["advertise", "share", "sign", "reveal"])
@pytest.mark.parametrize("answer", [b"", b"\xff" * 9], ids=["empty", "no message"])
def test_what_is_no_answer_counts_as_none(cohort, stage, answer):
    """Whoever came far enough to be in the sum stays in it."""
    cohort.change = only(stage, lambda _: answer)
    total = cohort.total()
    assert ODD in cohort.lost
    summed = cohort.vectors.keys() - (set() if stage in {"sign", "reveal"} else {ODD})
    assert np.array_equal(total, plain_sum(cohort.vectors, summed))


@pytest.mark.parametrize("change", [lambda v: v[:-1], lambda v: v + v[:4], lambda _: b""])
def test_vectors_are_as_long_as_they_must_be(cohort, change):
    """Another is not added, and its sender has dropped out."""
    cohort.change = only("mask", change)
    assert sum_of_the_others(cohort)
    assert "bytes in place of 12" in cohort.lost[ODD]


def test_shares_are_for_each_neighbour_once(cohort):
    """Who forgets one would have that one drop out; extra ones would be passed on to nobody."""
    rosters = cohort.advertise()
    sealed = cohort.participants[ODD].share(rosters[ODD]).sealed
    for wrong in (sealed[1:], [*sealed, sealed[0]], [*sealed, pb.Sealed(site=ODD)]):
        with pytest.raises(SecureSumError, match="has not sealed a share for each"):
            cohort.collector.take_shares(ODD, pb.Shares(sealed=wrong))
    cohort.collector.take_shares(ODD, pb.Shares(sealed=sealed))


def test_shares_are_revealed_of_each_member_as_it_is_told(cohort):
    """Of a survivor that of its seed, of who has dropped out that of its key, of no one else."""
    cohort.terms = terms_for(5)
    cohort.change = losing({"site-0004": "mask"})
    survivors = cohort.mask(cohort.share(cohort.advertise()))
    revealed = cohort.participants[ODD].reveal(cohort.sign(survivors)[ODD])
    swapped = pb.Revealed(seeds=revealed.mask_keys, mask_keys=revealed.seeds)
    fewer = pb.Revealed(seeds=revealed.seeds[1:], mask_keys=revealed.mask_keys)
    for wrong in (swapped, fewer, pb.Revealed()):
        with pytest.raises(SecureSumError, match="has not revealed one share for each"):
            cohort.collector.take_revealed(ODD, wrong)
    cohort.collector.take_revealed(ODD, revealed)


def test_an_answer_is_taken_once_and_in_its_stage(cohort):
    """A vector that came twice would be in the sum twice, and one without shares never opened."""
    taken = cohort.collector
    late = "was not asked in this stage, or has answered before"
    with pytest.raises(SecureSumError, match=late):
        taken.take_shares(ODD, pb.Shares())
    inboxes = cohort.share(cohort.advertise())
    with pytest.raises(SecureSumError, match=late):
        taken.take_shares(ODD, pb.Shares())
    with pytest.raises(SecureSumError, match=late):
        taken.take_masked("sybil", bytes(12))
    with pytest.raises(SecureSumError, match=late):
        taken.take_revealed(ODD, pb.Revealed())
    survivors = cohort.mask(inboxes)
    with pytest.raises(SecureSumError, match=late):
        taken.take_masked(ODD, bytes(12))
    unmaskings = cohort.sign(survivors)
    with pytest.raises(SecureSumError, match=late):
        taken.take_signature(ODD, pb.Signature())
    total = cohort.reveal(unmaskings)
    with pytest.raises(SecureSumError, match=late):
        taken.take_revealed(ODD, pb.Revealed())
    assert np.array_equal(total, plain_sum(cohort.vectors, cohort.vectors))


@pytest.mark.parametrize(
    ("stage", "says"),
    [
        ("advertise", "have trained"),
        ("share", "have shared their secrets"),
        ("mask", "have sent a masked vector"),
        ("sign", "have signed the survivors"),
        ("reveal", "4 shares of a secret were expected, but 3 came"),
    ],
)
def test_each_stage_needs_the_threshold(cohort, stage, says):
    """One member may be lost; with two there is no sum, and the error says at which stage."""
    cohort.change = losing({ODD: stage})
    cohort.total()
    again = Cohort(cohort.vectors, cohort.terms)
    again.change = losing({ODD: stage, "site-0001": stage})
    with pytest.raises(SecureSumError, match=says):
        again.total()
    assert bool(again.revealed) == (stage == "reveal")
