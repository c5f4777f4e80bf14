"""What a secure sum costs in large cohorts, one client in twenty of which is lost.

A client shares secrets and masks with some others alone, whose number grows as the logarithm of
the cohort's; so should its cost. Cohorts of 125 to 1,000 clients with 1 million values each play
an attempt by themselves, and 1,000 clients a round in the in-process grid (``secure_round.py``).
They train nothing. Who is lost has shared its secrets before: that costs the aggregator most. Each
sum must be that of the others.

By default a third of a cohort are colluders; in one of 125 these are so few that fewer neighbours
do than the logarithm says. So it is 1,000 clients against 500 that tell how the cost grows: over
the logarithm, one that grew as their number does would be 1.8 times as high. Seconds are those of
one core. ``python -m simulations.benchmarks.secure_cohorts`` is a trial with few values.
"""

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedlora.adapter import AdapterSpec
from fedlora.errors import RunError
from fedlora.privacy.secure_aggregation.collector import Collector
from fedlora.privacy.secure_aggregation.participant import Participant
from fedlora.privacy.secure_aggregation.terms import Terms
from simulations.benchmarks.measure import Bar, once, report
from simulations.benchmarks.peak import peak_of
from simulations.benchmarks.replies import adapter_spec
from simulations.benchmarks.secure_attempt import member_of
from simulations.benchmarks.secure_round import SecureRound, is_lost
from simulations.benchmarks.spent import Spent

COHORTS = (125, 250, 500, 1000)
GROWTH, MEMORY = "client s / log n, 1000 / 500 clients", "grid / all vectors"
LIMITS = {GROWTH: 1.15, MEMORY: 0.25}
_VARIANTS = 4
"""Different vectors among the clients."""


def run(_: int) -> None:
    """Measure each cohort once, and print the result."""
    report("secure_cohorts", measured(adapter_spec(layers=3, width=2)), LIMITS)


def measured(spec: AdapterSpec, cohorts: Sequence[int] = COHORTS) -> list[Bar]:
    """Return what clients cost in these cohorts, and in the grid in the last; print the table."""
    rounds = {clients: SecureRound(clients, spec) for clients in cohorts}
    last = rounds[cohorts[-1]]
    print(f"{last.size:,} values of a client, one client in twenty lost; seconds of one core\n")
    print(f"{'clients':>14}  degree  threshold  client s  / log n  sent MB  got MB  aggregator s")
    by_log = {}
    for clients, each in rounds.items():
        spent = attempted(each.terms, sites=each.recipe.site_names, size=each.size)
        by_log[clients] = spent.client / clients / math.log(clients)
        print(_line(f"{clients}", each, spent), flush=True)
    spent = Spent()
    with tempfile.TemporaryDirectory() as folder:
        peak = peak_of(lambda: last.play(Path(folder), spent))
    print(_line(f"{cohorts[-1]} in the grid", last, spent), end="\n\n")
    pairs = [(cohorts[-1], fewer) for fewer in reversed(cohorts[:-1])]
    names = {n: f"client s / log n, {most} / {n} clients" for most, n in pairs}
    bars = [
        once(names[n], ours=by_log[most], peer=by_log[n], unit="s", at_most=LIMITS.get(names[n]))
        for most, n in pairs
    ]
    vectors = cohorts[-1] * 4 * last.size / 1e6
    return [*bars, once(MEMORY, ours=peak, peer=vectors, unit="MB", at_most=LIMITS[MEMORY])]


def _line(what: str, cohort: SecureRound, spent: Spent) -> str:
    terms, clients = cohort.terms, cohort.recipe.cohort_size
    each = spent.client / clients
    sent, got = (count / clients / 1e6 for count in (spent.sent, spent.received))
    return (
        f"{what:>14}  {terms.degree:6}  {terms.threshold:9}  {each:8.3f}"
        f"  {each / math.log(clients):7.4f}  {sent:7.3f}  {got:6.3f}  {spent.aggregator:12.1f}"
    )


def attempted(terms: Terms, *, sites: Sequence[str], size: int) -> Spent:
    """Play an attempt of these sites, with vectors of so many values; return what it took.

    Raises:
        RunError: its sum is not that of the clients who stayed.
    """
    generator = np.random.default_rng(0)
    vectors = generator.integers(2**32, size=(_VARIANTS, size), dtype=np.uint32)
    spent, collector = Spent(), Collector(terms=terms, context=bytes(32), size=size)
    members = {site: member_of(site, terms) for site in sites}
    for site, member in members.items():
        with spent.at_client():
            said = spent.out(member.advertise())
        with spent.at_aggregator():
            collector.take_advertisement(site, said)
    with spent.at_aggregator():
        rosters = dict(collector.rosters())
    for site, member in members.items():
        with spent.at_client():
            shares = spent.out(member.share(spent.back(rosters.pop(site))))
        with spent.at_aggregator():
            collector.take_shares(site, shares)
    total = _unmasked(collector, members, _repeated(vectors), spent=spent)
    places = [place for place, site in enumerate(sites) if not is_lost(site)]
    counts = np.bincount([place % _VARIANTS for place in places]).astype(np.uint32)
    if not np.array_equal(total, counts @ vectors):
        raise RunError(f"The secure sum of {len(places)} clients is not the sum.")
    return spent


def _unmasked(
    collector: Collector,
    members: Mapping[str, Participant],
    vectors: Iterator[NDArray[np.uint32]],
    *,
    spent: Spent,
) -> NDArray[np.uint32]:
    """Play the stages from the masked vectors on; return the sum."""
    with spent.at_aggregator():
        inboxes = dict(collector.inboxes())
    for (site, member), vector in zip(members.items(), vectors, strict=False):
        inbox = spent.back(inboxes.pop(site))
        if is_lost(site):
            continue
        with spent.at_client():
            member.mask(inbox, vector)
            payload = vector.tobytes()
        spent.sent += len(payload)
        with spent.at_aggregator():
            collector.take_masked(site, payload)
    with spent.at_aggregator():
        collector.survivors_for()
        unmaskings = collector.unmaskings()
    for site, unmasking in unmaskings.items():
        with spent.at_client():
            revealed = spent.out(members[site].reveal(spent.back(unmasking)))
        with spent.at_aggregator():
            collector.take_revealed(site, revealed)
    with spent.at_aggregator():
        return collector.total()


def _repeated(vectors: NDArray[np.uint32]) -> Iterator[NDArray[np.uint32]]:
    """Yield copies of vectors in turn, for ever."""
    while True:
        for vector in vectors:
            yield vector.copy()


if __name__ == "__main__":
    report("secure_cohorts", measured(adapter_spec(layers=1, width=32)), LIMITS)
