"""Which members share masks and secrets with each other, and how many of them can open one."""

import math
import secrets
from collections.abc import Sequence
from fractions import Fraction

from fedlora.errors import SecureSumError

SECURITY = 40
"""A graph protects some honest member too little with a probability of at most ``2^-SECURITY``."""
CORRECTNESS = 30
"""It leaves some member too few neighbours with one of at most ``2^-CORRECTNESS``."""


def neighbours(count: int, *, degree: int | None) -> Sequence[tuple[int, ...]]:
    """Return each place's neighbours in ascending order, which have it for a neighbour, too.

    Without a degree, or with one that so few do not have, they are all others. Else the graph is
    Harary's: the places stand around a circle in an order that the operating system's randomness
    gives, each with ``degree / 2`` neighbours on either side. Whoever draws it must be honest, if
    curious.

    Args:
        count: how many places there are.
        degree: as ``derived``, an even number.
    """
    if degree is None or degree >= count - 1:
        return [tuple(j for j in range(count) if j != i) for i in range(count)]
    circle = list(range(count))
    secrets.SystemRandom().shuffle(circle)
    steps = [step for half in range(1, degree // 2 + 1) for step in (-half, half)]
    drawn = {
        member: tuple(sorted(circle[(place + step) % count] for step in steps))
        for place, member in enumerate(circle)
    }
    return [drawn[member] for member in range(count)]


def derived(
    members: int,
    *,
    corrupt: float,
    dropout: float,
    security: int = SECURITY,
    correctness: int = CORRECTNESS,
) -> tuple[int, int]:
    """Return the least degree of a random Harary graph that is safe and useful, and its threshold.

    Guarantees:
        For every set of ``corrupt * members`` corrupt members and every set of
        ``dropout * members`` that drop out, both chosen without knowledge of the graph:

        - With probability ``1 - 2^-security`` no honest member has as many corrupt neighbours as
          the threshold says, and the graph of the honest survivors is connected: nothing but their
          sum is learned.
        - With probability ``1 - 2^-correctness`` every member keeps as many neighbours as the
          threshold says: the sum can be unmasked.

        If more drop out, neither holds: such an attempt must be abandoned before anything is
        revealed.

    How: an honest member's neighbours are a random set of ``degree`` others, so that the corrupt
    among them, and the survivors, are hypergeometric; a union bound over all members. The threshold
    is the least that is safe. As to connection: what disconnects a circle of members with
    ``degree / 2`` neighbours on either side has ``degree / 2`` members next to each other in two
    places; a union bound over the ``n (n - degree - 1) / 2`` pairs of such places. Half of
    ``2^-security`` goes to each of the two events. All sums are exact, in integers.

    Args:
        members: how many there are, ``n``.
        corrupt: share of them that tell the aggregator all they know.
        dropout: share of them that may drop out after secrets are shared.
        security: the paper's sigma.
        correctness: its eta.

    Raises:
        SecureSumError: the rates leave no such graph.

    References:
        Bell et al. 2020, "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead", CCS,
        eprint 2020/704, section 3: honest-but-curious.
    """
    if not (0 <= corrupt < 1 and 0 <= dropout < 1):
        raise SecureSumError(
            f"Shares of the members of at least 0 and below 1 were expected, but {corrupt:g} are "
            f"said to be corrupt and {dropout:g} to drop out."
        )
    bad, dropped = (math.floor(Fraction(str(rate)) * members) for rate in (corrupt, dropout))
    event = Fraction(1, 2 ** (security + 1))
    lost = Fraction(1, members * 2**correctness)
    others = members - 1
    for degree in range(2, others, 2):
        if _disconnects(members, degree, bad + dropped) > event:
            continue
        threshold = max(2, _rarely(others, bad, degree, at_most=event / members))
        if threshold + _rarely(others, dropped, degree, at_most=lost) <= degree + 1:
            return degree, threshold
    raise SecureSumError(
        f"No sparse graph of {members} members is safe with a share of {corrupt:g} corrupt and "
        f"{dropout:g} dropping out. Expect fewer of either, or have more members."
    )


def _disconnects(members: int, degree: int, removed: int) -> Fraction:
    """Bound the probability that a random Harary graph falls apart without so many members.

    Any ``degree`` of the places around the circle have only removed members with the probability
    that is the ratio of the binomials.
    """
    pairs = Fraction(members * (members - degree - 1), 2)
    return pairs * Fraction(math.comb(removed, degree), math.comb(members, degree))


def _rarely(population: int, marked: int, draws: int, *, at_most: Fraction) -> int:
    """Return the least number of marked ones that is reached with such a probability at most.

    ``draws`` are taken out of the population without putting any back.
    """
    unmarked = population - marked
    limit = at_most * math.comb(population, draws)
    number = min(draws, marked)
    ways = math.comb(marked, number) * math.comb(unmarked, draws - number)
    tail = ways
    while tail <= limit:
        ways = ways * number * (unmarked - draws + number)
        ways //= (marked - number + 1) * (draws - number + 1)
        number -= 1
        tail += ways
    return number + 1
