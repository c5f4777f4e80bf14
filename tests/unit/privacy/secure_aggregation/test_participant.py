"""What a site refuses in an attempt: rosters, inboxes, survivors, and stages out of turn."""

import numpy as np
import pytest

from fedlora.errors import PolicyError, SecureSumError
from fedlora.privacy.secure_aggregation import statements
from fedlora.secure_sum.v1 import secure_sum_pb2 as pb
from simulations.secure_sums import CONTEXT, Cohort, losing, new_signer, new_vectors, terms_for

ME = "site-0000"


@pytest.fixture
def cohort():
    """Five members at the threshold four."""
    return cohort_of(5)


def cohort_of(members, **changes):
    vectors = new_vectors(members, size=3, generator=np.random.default_rng(0))
    return Cohort(vectors, terms_for(members, **changes))


def advertisement(signer, site, **changes):
    facts = {"context": CONTEXT, "mask_key": b"m" * 32, "seal_key": b"s" * 32, "seed": b"b" * 32}
    return statements.advertised(signer, site=site, **{**facts, **changes})


def with_member(roster, site, said):
    """Return a roster with another advertisement in a member's place, or one more."""
    members = [each for each in roster.members if each.site != site]
    return pb.Roster(members=[*members, *said])


# Rosters


def refused_roster(cohort, change, error):
    """Return why a site does not share its secrets in a roster that was changed."""
    roster = change(cohort.advertise()[ME])
    with pytest.raises(error) as caught:
        cohort.answer(ME, roster)
    with pytest.raises(SecureSumError, match="there is nothing to be played next"):
        cohort.answer(ME, pb.Inbox())  # it has left the attempt
    return str(caught.value)


def test_a_substituted_member_is_refused(cohort):
    """The aggregator's keys under its name, signed by the aggregator's own key."""
    said = advertisement(new_signer(), "site-0001")
    assert "site-0001 is not known" in refused_roster(
        cohort, lambda roster: with_member(roster, "site-0001", [said]), PolicyError
    )


def test_a_member_is_not_spoken_for(cohort):
    """The aggregator's keys under its name and identity, which the aggregator cannot sign for."""
    said = advertisement(new_signer(), "site-0001")
    said.identity = cohort.signers["site-0001"].public.raw
    assert "not signed by its key" in refused_roster(
        cohort, lambda roster: with_member(roster, "site-0001", [said]), SecureSumError
    )


@pytest.mark.parametrize("field", ["mask_key", "seal_key", "seed_digest", "context"])
def test_what_a_member_said_is_not_changed(cohort, field):
    """Each field is signed."""

    def change(roster):
        setattr(roster.members[1], field, b"?" * 32)
        return roster

    assert "not signed by its key" in refused_roster(cohort, change, SecureSumError)


def test_a_member_of_another_context_is_refused(cohort):
    """It was sent another adapter, or this is what it said in another round."""
    said = advertisement(cohort.signers["site-0001"], "site-0001", context=bytes(32))
    reason = refused_roster(
        cohort, lambda roster: with_member(roster, "site-0001", [said]), SecureSumError
    )
    assert "site-0001 was given another recipe, base model, adapter or round" in reason


def test_a_member_that_nobody_pinned_is_refused(cohort):
    """A site of the aggregator's own making."""
    said = advertisement(new_signer(), "sybil")
    assert "sybil is not known" in refused_roster(
        cohort, lambda roster: with_member(roster, "site-0001", [said]), PolicyError
    )


def test_one_key_is_one_member(cohort):
    """Even if somebody has pinned it under two names: who holds it counts once."""
    cohort.participants[ME].identify = lambda _site, _key: None
    said = advertisement(cohort.signers["site-0002"], "site-0001")
    assert "have one key" in refused_roster(
        cohort, lambda roster: with_member(roster, "site-0001", [said]), SecureSumError
    )


def test_one_name_is_one_member(cohort):
    """Else it would be known by one key, and summed by another."""
    assert "names a site twice" in refused_roster(
        cohort,
        lambda roster: pb.Roster(members=[*roster.members, roster.members[1]]),
        SecureSumError,
    )


@pytest.mark.parametrize("own", ["absent", "of another attempt"])
def test_a_site_is_in_its_roster_by_its_own_keys(cohort, own):
    """What it said before is signed rightly, but its secrets of then are gone."""
    said = [] if own == "absent" else [advertisement(cohort.signers[ME], ME)]
    assert "this site by another key" in refused_roster(
        cohort, lambda roster: with_member(roster, ME, said), SecureSumError
    )


def test_there_are_no_more_members_than_the_terms_say(cohort):
    """With one more, pinned or not, the threshold would no longer be most of them."""
    cohort.participants[ME].identify = lambda _site, _key: None
    said = advertisement(new_signer(), "sybil")
    assert "6 members; at most 5" in refused_roster(
        cohort, lambda roster: pb.Roster(members=[*roster.members, said]), SecureSumError
    )


@pytest.mark.parametrize(("size", "taken"), [(4, True), (3, False)])
def test_there_are_no_fewer_members_than_the_threshold(cohort, size, taken):
    """Fewer could never open the sum."""
    roster = cohort.advertise()[ME]
    fewer = pb.Roster(members=roster.members[:size])
    if taken:
        assert len(pb.Shares.FromString(cohort.answer(ME, fewer)).sealed) == size - 1
    else:
        with pytest.raises(SecureSumError, match="3 members are in the roster, but at least 4"):
            cohort.answer(ME, fewer)


def test_the_policy_sees_the_survivors(cohort):
    """Each by name, the site itself among them, before anything is signed or revealed of them."""
    asked = []
    cohort.participants[ME].admit = lambda sites: asked.append(sorted(sites))
    cohort.change = losing({"site-0004": "mask"})
    cohort.total()
    assert asked == [sorted(cohort.vectors)[:-1]]


# Inboxes


def inboxes_of(cohort):
    return cohort.share(cohort.advertise())


@pytest.mark.parametrize("change", ["swapped", "flipped", "cut", "empty"])
def test_shares_are_for_one_receiver_from_one_sender(cohort, change):
    """What was sealed for another, or changed, is not opened, and who sent it is named."""
    inboxes = inboxes_of(cohort)
    first, second, *_ = inboxes[ME].sealed
    text = {
        "swapped": second.text,
        "flipped": bytes([first.text[0] ^ 1]) + first.text[1:],
        "cut": first.text[:-1],
        "empty": b"",
    }[change]
    first.text = text
    with pytest.raises(SecureSumError, match="The shares of site-0001 are broken"):
        cohort.answer(ME, inboxes[ME])


def test_shares_for_another_are_not_opened(cohort):
    """The same sender's for somebody else."""
    inboxes = inboxes_of(cohort)
    of_another = next(each for each in inboxes["site-0001"].sealed if each.site == "site-0002")
    inboxes[ME].sealed[1].text = of_another.text
    with pytest.raises(SecureSumError, match="The shares of site-0002 are broken"):
        cohort.answer(ME, inboxes[ME])


@pytest.mark.parametrize("extra", ["sybil", ME, "site-0001"])
def test_shares_are_of_members_once_each(cohort, extra):
    """Masks with one sender twice would not cancel, and those with nobody hide nothing."""
    inboxes = inboxes_of(cohort)
    sealed = pb.Sealed(site=extra, text=inboxes[ME].sealed[0].text)
    with pytest.raises(SecureSumError, match="is no member, or has sent shares twice"):
        cohort.answer(ME, pb.Inbox(sealed=[*inboxes[ME].sealed, sealed]))


@pytest.mark.parametrize(("senders", "taken"), [(3, True), (2, False)])
def test_a_site_masks_with_enough(cohort, senders, taken):
    """With itself they are the threshold."""
    inboxes = inboxes_of(cohort)
    fewer = pb.Inbox(sealed=inboxes[ME].sealed[:senders])
    if taken:
        assert len(cohort.answer(ME, fewer)) == 12
    else:
        with pytest.raises(SecureSumError, match="3 members have shared their secrets"):
            cohort.answer(ME, fewer)


# Survivors

TOLD = ["site-0000", "site-0001", "site-0002", "site-0003"]


@pytest.mark.parametrize(
    "told",
    [
        [*TOLD[1:], "site-0004"],
        [*TOLD, "site-0003"],
        TOLD[::-1],
        [*TOLD, "sybil"],
        TOLD[:3],
        [],
    ],
    ids=["without me", "one twice", "out of order", "no member", "too few", "nobody"],
)
@pytest.mark.parametrize("signed", [True, False])
def test_survivors_are_members_in_order_with_this_site(signed, told):
    """Else nothing is signed, and without signatures nothing revealed."""
    cohort = cohort_of(5, signed=signed)
    cohort.mask(inboxes_of(cohort))
    survivors = pb.Survivors(sites=told)
    with pytest.raises(SecureSumError, match=r"The survivors must be|have sent a masked vector"):
        cohort.answer(ME, survivors if signed else pb.Unmasking(survivors=survivors))


def test_survivors_are_those_whose_shares_came(cohort):
    """Of another there would be no share of its own mask, and no mask with it."""
    inboxes = dict(inboxes_of(cohort))
    inboxes[ME] = pb.Inbox(sealed=inboxes[ME].sealed[:3])
    cohort.mask(inboxes)
    with pytest.raises(SecureSumError, match="sites that have shared their secrets"):
        cohort.answer(ME, pb.Survivors(sites=[*TOLD, "site-0004"]))


# Signatures


def signed_by(cohort, sites, survivors=TOLD):
    text = statements.survivors_text(bytes.fromhex(cohort.collector.attempt), survivors)
    return [pb.Signature(site=s, signature=cohort.signers[s].sign(text)) for s in sites]


def asked_to_reveal(cohort, signatures, survivors=TOLD):
    """Let a site sign four survivors of five, and ask it to reveal its shares."""
    cohort.mask(inboxes_of(cohort))
    cohort.answer(ME, pb.Survivors(sites=TOLD))
    told = pb.Survivors(sites=survivors)
    return cohort.answer(ME, pb.Unmasking(survivors=told, signatures=signatures(cohort)))


def test_the_threshold_of_signatures_opens(cohort):
    """Shares of the survivors' seeds, and of the key of who has dropped out; of none both."""
    revealed = pb.Revealed.FromString(asked_to_reveal(cohort, lambda c: signed_by(c, TOLD)))
    assert [each.site for each in revealed.seeds] == TOLD
    assert [each.site for each in revealed.mask_keys] == ["site-0004"]


@pytest.mark.parametrize(
    "signatures",
    [
        lambda c: signed_by(c, TOLD[:3]),
        lambda c: signed_by(c, [*TOLD[:3], "site-0004"]),
        lambda c: signed_by(c, TOLD[:3]) + signed_by(c, TOLD[3:], [*TOLD, "site-0004"]),
        lambda c: [
            *signed_by(c, TOLD[:3]),
            pb.Signature(site=TOLD[3], signature=signed_by(c, TOLD[:1])[0].signature),
        ],
        lambda c: [*signed_by(c, TOLD[:3]), pb.Signature(site=TOLD[3], signature=b"")],
    ],
    ids=["one too few", "one who dropped out", "of others", "another's", "empty"],
)
def test_one_signature_less_opens_nothing(cohort, signatures):
    """Those who dropped out, and signatures of other survivors or by another key, count as none."""
    with pytest.raises(SecureSumError, match="3 members have signed the survivors, but 4 must"):
        asked_to_reveal(cohort, signatures)


def test_a_signature_counts_once(cohort):
    """Four signatures of three members are three."""
    with pytest.raises(SecureSumError, match="signed the survivors twice"):
        asked_to_reveal(cohort, lambda c: signed_by(c, [*TOLD[:3], TOLD[0]]))


def test_a_site_reveals_for_what_it_signed_alone(cohort):
    """Others may have signed something else: it has not."""
    others = [*TOLD, "site-0004"]
    with pytest.raises(SecureSumError, match="not those that this site has signed"):
        asked_to_reveal(cohort, lambda c: signed_by(c, others, others), survivors=others)


# Stages


@pytest.mark.parametrize("signed", [True, False])
def test_stages_are_played_once_and_in_order(signed):
    """At each moment of an attempt one stage alone is played, and none after the last."""
    cohort = cohort_of(5, signed=signed)
    told = {
        "advertise": None,
        "share": pb.Roster(),
        "mask": pb.Inbox(),
        "sign": pb.Survivors(),
        "reveal": pb.Unmasking(),
    }

    def refuses_all_but(stage):
        for other, message in told.items():
            if other != stage:
                with pytest.raises(SecureSumError, match=f"{other} was asked, but"):
                    cohort.answer(ME, message)

    refuses_all_but("advertise")
    rosters = cohort.advertise()
    refuses_all_but("share")
    inboxes = cohort.share(rosters)
    refuses_all_but("mask")
    survivors = cohort.mask(inboxes)
    refuses_all_but("sign" if signed else "reveal")
    unmaskings = cohort.sign(survivors)
    refuses_all_but("reveal")
    cohort.reveal(unmaskings)
    refuses_all_but("")
    with pytest.raises(SecureSumError, match="there is nothing to be played next"):
        cohort.answer(ME, unmaskings[ME])


def test_nothing_follows_a_stage_that_failed(cohort):
    """A site that could not mask its vector signs no survivors, even if it is said to be one."""
    inboxes = inboxes_of(cohort)
    inboxes[ME].sealed[0].text = b""
    survivors = cohort.mask(inboxes)
    assert ME in cohort.lost
    with pytest.raises(SecureSumError, match="sign was asked, but of this attempt there is noth"):
        cohort.answer(ME, pb.Survivors(sites=[ME, *survivors]))


def test_secrets_are_in_no_text(cohort):
    """Neither a seed nor a private key is shown where a site is printed."""
    cohort.total()
    participant = cohort.participants[ME]
    shown = repr(participant)
    for secret in (participant._seed, participant._mask_key.private, participant._seal_key.private):
        assert repr(secret) not in shown
    assert all(repr(share) not in shown for held in participant._held.values() for share in held)
