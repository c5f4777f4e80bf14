"""Which clients share masks with each other, and how many of them can undo one."""

import math
import secrets
from collections.abc import Sequence
from fractions import Fraction

from fedlora.errors import SecureSumError

SECURITY = 40
"""A graph protects some honest client too little with a probability of at most ``2^-SECURITY``."""
CORRECTNESS = 30
"""It leaves some client too few neighbours with one of at most ``2^-CORRECTNESS``."""


def neighbours(clients: int, *, degree: int | None) -> Sequence[tuple[int, ...]]:
    """Return of each client, from 0, those it shares masks with, in ascending order.

    Without a degree these are all others. With one it is a random Harary graph: clients stand
    around a circle in an order that the operating system's randomness gives, each with
    ``degree / 2`` neighbours on either side. Whoever draws it must be honest, if curious.
    """
    if degree is None or degree >= clients - 1:
        return [tuple(other for other in range(clients) if other != one) for one in range(clients)]
    circle = list(range(clients))
    secrets.SystemRandom().shuffle(circle)
    steps = [step for half in range(1, degree // 2 + 1) for step in (-half, half)]
    found: list[tuple[int, ...]] = [()] * clients
    for place, client in enumerate(circle):
        found[client] = tuple(sorted(circle[(place + step) % clients] for step in steps))
    return found


def derived(
    clients: int,
    *,
    corrupt: int,
    dropped: int,
    security: int = SECURITY,
    correctness: int = CORRECTNESS,
) -> tuple[int, int]:
    """Return the least degree of a random Harary graph that is safe and useful, and its threshold.

    Guarantees:
        For every set of so many corrupt clients and every set of so many that drop out, both chosen
        without knowledge of the graph:

        - With probability ``1 - 2^-security`` no honest client has as many corrupt neighbours as
          the threshold says, and the graph of the honest survivors is connected: nothing but their
          sum is learned.
        - With probability ``1 - 2^-correctness`` every client keeps as many neighbours as the
          threshold says: the sum can be unmasked.

        If more drop out, neither holds: such an attempt must be abandoned before anything is
        revealed.

    How: an honest client's neighbours are a random set of ``degree`` others, so that the corrupt
    among them, and the survivors, are hypergeometric; a union bound over all clients. The threshold
    is the least that is safe. As to connection: what disconnects a circle of clients with
    ``degree / 2`` neighbours on either side has ``degree / 2`` clients next to each other in two
    places; a union bound over the ``n (n - degree - 1) / 2`` pairs of such places. Half of
    ``2^-security`` goes to each of the two events. All sums are exact, in integers.

    Args:
        clients: how many there are, ``n``.
        corrupt: how many of them may tell the aggregator all they know.
        dropped: how many may drop out after secrets are shared.
        security: the paper's sigma.
        correctness: its eta.

    Raises:
        SecureSumError: there is no such graph.

    References:
        Bell et al. 2020, "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead", CCS,
        eprint 2020/704, section 3: honest-but-curious.
    """
    event = Fraction(1, 2 ** (security + 1))
    lost = Fraction(1, clients * 2**correctness)
    others = clients - 1
    for degree in range(2, others, 2):
        if _disconnects(clients, degree, corrupt + dropped) > event:
            continue
        threshold = max(2, _rarely(others, corrupt, degree, at_most=event / clients))
        if threshold + _rarely(others, dropped, degree, at_most=lost) <= degree + 1:
            return degree, threshold
    raise SecureSumError(
        f"No sparse graph of {clients} clients is safe with {corrupt} of them corrupt and "
        f"{dropped} dropping out. Lower privacy.colluders or privacy.dropout_rate, or have more "
        "clients."
    )


def _disconnects(clients: int, degree: int, removed: int) -> Fraction:
    """Bound the probability that a random Harary graph falls apart without so many clients.

    Any ``degree`` of the places around the circle have only removed clients with the probability
    that is the ratio of the binomials.
    """
    pairs = Fraction(clients * (clients - degree - 1), 2)
    return pairs * Fraction(math.comb(removed, degree), math.comb(clients, degree))


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
