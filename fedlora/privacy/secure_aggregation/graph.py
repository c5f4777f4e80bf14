"""Which clients share masks with each other, and how many of them can undo one."""

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Self

from fedlora.errors import SecureSumError

LARGEST_COMPLETE = 100
"""Up to so many clients everybody shares masks with everybody."""
SECURITY = 40
"""A graph protects some honest client too little with a probability of at most ``2^-SECURITY``."""
CORRECTNESS = 30
"""It leaves some client too few neighbours with one of at most ``2^-CORRECTNESS``."""


@dataclass(frozen=True, kw_only=True)
class Graph:
    """Who shares masks with whom: symmetric, nobody with itself."""

    degree: int
    """Of every client: how many others it shares masks with, and gives shares of its secrets."""
    threshold: int
    """How many shares give such a secret."""
    neighbours: Sequence[tuple[int, ...]]
    """Of each client, from 0, those it shares masks with, in ascending order."""

    @classmethod
    def complete(cls, clients: int, *, threshold: int) -> Self:
        """Return the graph in which everybody shares masks with everybody."""
        neighbours = [tuple(j for j in range(clients) if j != i) for i in range(clients)]
        return cls(degree=clients - 1, threshold=threshold, neighbours=neighbours)

    @classmethod
    def sparse(cls, clients: int, *, corrupt: float, dropout: float) -> Self:
        """Return a random graph of the degree and threshold that are ``derived`` from the rates.

        It is a Harary graph: clients stand around a circle in an order that the operating system's
        randomness gives, each with ``degree / 2`` neighbours on either side. Whoever draws it must
        be honest, if curious.

        Raises:
            SecureSumError: as ``derived``.
        """
        degree, threshold = derived(clients, corrupt=corrupt, dropout=dropout)
        circle = list(range(clients))
        secrets.SystemRandom().shuffle(circle)
        steps = [step for half in range(1, degree // 2 + 1) for step in (-half, half)]
        neighbours: list[tuple[int, ...]] = [()] * clients
        for place, client in enumerate(circle):
            neighbours[client] = tuple(sorted(circle[(place + step) % clients] for step in steps))
        return cls(degree=degree, threshold=threshold, neighbours=neighbours)

    def __str__(self) -> str:
        return (
            f"{len(self.neighbours)} clients; each shares masks with {self.degree} others; "
            f"{self.threshold} shares give a secret"
        )


def derived(
    clients: int,
    *,
    corrupt: float,
    dropout: float,
    security: int = SECURITY,
    correctness: int = CORRECTNESS,
) -> tuple[int, int]:
    """Return the least degree of a random Harary graph that is safe and useful, and its threshold.

    Guarantees:
        For every set of ``corrupt * clients`` corrupt clients and every set of
        ``dropout * clients`` that drop out, both chosen without knowledge of the graph:

        - With probability ``1 - 2^-security`` no honest client has as many corrupt neighbours as
          the threshold says, and the graph of the honest survivors is connected: nothing but their
          sum is learned.
        - With probability ``1 - 2^-correctness`` every client keeps as many neighbours as the
          threshold says: the sum can be unmasked.

    How: an honest client's neighbours are a random set of ``degree`` others, so that the corrupt
    among them, and the survivors, are hypergeometric; a union bound over all clients. The threshold
    is the least that is safe. As to connection: what disconnects a circle of clients with
    ``degree / 2`` neighbours on either side has ``degree / 2`` clients next to each other in two
    places; a union bound over the ``n (n - degree - 1) / 2`` pairs of such places. Half of
    ``2^-security`` goes to each of the two events. All sums are exact, in integers.

    Args:
        clients: how many there are, ``n``.
        corrupt: share of the clients that tell the aggregator all they know.
        dropout: share of those that may drop out after secrets are shared.
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
            f"Shares of the clients of at least 0 and below 1 were expected, but {corrupt:g} are "
            f"said to be corrupt and {dropout:g} to drop out."
        )
    bad, dropped = (math.floor(Fraction(str(rate)) * clients) for rate in (corrupt, dropout))
    event = Fraction(1, 2 ** (security + 1))
    lost = Fraction(1, clients * 2**correctness)
    others = clients - 1
    for degree in range(2, others, 2):
        if _disconnects(clients, degree, bad + dropped) > event:
            continue
        threshold = max(2, _rarely(others, bad, degree, at_most=event / clients))
        if threshold + _rarely(others, dropped, degree, at_most=lost) <= degree + 1:
            return degree, threshold
    raise SecureSumError(
        f"No sparse graph of {clients} clients is safe with a share of {corrupt:g} corrupt and "
        f"{dropout:g} dropping out. Expect fewer of either, or have more clients."
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
