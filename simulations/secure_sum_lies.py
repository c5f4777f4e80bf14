"""What an aggregator that lies can tell the members of an attempt, and colluders sign."""

from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import suppress

from fedlora.errors import SecureSumError
from fedlora.privacy.secure_aggregation import statements
from fedlora.secure_sum.v1 import secure_sum_pb2 as pb
from simulations.secure_sums import Cohort

View = tuple[Collection[str], Sequence[str]]
"""Survivors, and who is told that it is those."""


def sites_of(cohort: Cohort, colluders: int) -> tuple[str, list[str], list[str]]:
    """Return the victim, the other honest members, and the colluders."""
    victim, *others = sorted(cohort.vectors)
    return victim, others[: len(others) - colluders], others[len(others) - colluders :]


def split_survivors(cohort: Cohort, colluders: int, *, first: int) -> int:
    """Tell so many others that all survived, the rest that the victim did not.

    Returns:
        How many of the two were believed.
    """
    cohort.mask(cohort.share(cohort.advertise()))
    victim, others, bad = sites_of(cohort, colluders)
    everybody = set(cohort.vectors)
    views = [(everybody, [victim, *others[:first]]), (everybody - {victim}, others[first:])]
    return _reveal(cohort, views, bad)


def split_inboxes(cohort: Cohort, colluders: int) -> None:
    """Give the victim shares of those alone who will be said to have dropped out, and colluders'.

    As many others as reveal enough are told that it survived; it is not asked itself.
    """
    inboxes = dict(cohort.share(cohort.advertise()))
    victim, others, bad = sites_of(cohort, colluders)
    signing = others[: cohort.terms.threshold - colluders]
    gone = others[len(signing) :]
    kept = [each for each in inboxes[victim].sealed if each.site in (*gone, *bad)]
    inboxes[victim] = pb.Inbox(sealed=kept)
    for site in gone:
        del inboxes[site]
    cohort.mask(inboxes)
    _reveal(cohort, [({victim, *signing, *bad}, signing)], bad)


def scatter_survivors(cohort: Cohort, colluders: int) -> None:
    """Give the victim shares of as few as can be, and tell each member that others of them dropped.

    No two are told the same. Each gives a share of the victim's own mask, and of as many of those
    few members' keys as the threshold lets drop out: where nobody compares, enough for all of them.
    """
    inboxes = dict(cohort.share(cohort.advertise()))
    victim, others, bad = sites_of(cohort, colluders)
    threshold, everybody = cohort.terms.threshold, set(cohort.vectors)
    few = others[: threshold - 1 - colluders]
    kept = [each for each in inboxes[victim].sealed if each.site in (*few, *bad)]
    inboxes[victim] = pb.Inbox(sealed=kept)
    cohort.mask(inboxes)
    given = Counter[str]()
    views: list[View] = []
    for site in others:
        rarest = sorted((one for one in few if one != site), key=lambda one: given[one])
        dropped = rarest[: len(everybody) - threshold]
        given.update(dropped)
        views.append((everybody - set(dropped), [site]))
    _reveal(cohort, views, bad)


def _reveal(cohort: Cohort, views: Sequence[View], colluders: Collection[str]) -> int:
    """Show each view to those whom it is for; return how many were believed.

    Whoever is honest signs what it is told, and colluders whatever there is.
    """
    believed = 0
    for survivors, audience in views:
        told = pb.Survivors(sites=sorted(survivors))
        honest = [site for site in audience if site not in cohort.lost]
        signed = honest if cohort.terms.signed else []
        signatures = [cohort.participants[site].sign(told) for site in signed]
        text = statements.survivors_text(bytes.fromhex(cohort.collector.attempt), survivors)
        signatures += [
            pb.Signature(site=site, signature=cohort.signers[site].sign(text)) for site in colluders
        ]
        for site in honest:
            with suppress(SecureSumError):
                cohort.answer(site, pb.Unmasking(survivors=told, signatures=signatures))
        believed += not cohort.revealed.keys().isdisjoint(honest)
    return believed
