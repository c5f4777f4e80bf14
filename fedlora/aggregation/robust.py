"""Rules that say how much each client's update counts, from inner products alone.

A rule sees the ``(n, n)`` Gram matrix of the clients' changes, in the space in which they are
combined: of the products B·A for ``product``, of the values that are sent for the methods that sum
these. So no rule can be passed in one space and poison another: an update as 100·B and A/100 is the
same to the rule as it is to the combiner. A rule never sees the values; what it decides is a
``Vote`` for each client, in the clients' order.

No rule tells a hostile client from an honest one with unusual data, and none withstands a majority.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median_high, median_low
from typing import Protocol

import torch
from torch import Tensor

from fedlora.methods import Robust

_SMOOTHING = 1e-6
_STEPS = 1000
_CONVERGED = 1e-12


@dataclass(frozen=True, kw_only=True)
class Vote:
    """What a client's update shall count."""

    weight: float
    """What the update counts by in the weighted mean."""
    share: float = 1.0
    """How much of its change is taken in; 0 excludes the client."""
    reason: str = ""
    """Why the client is excluded."""


class Rule(Protocol):
    """Gives each client's update a vote."""

    def __call__(self, gram: Tensor, weights: Sequence[float], *, attackers: int) -> list[Vote]:
        """Return a vote for each client.

        Args:
            gram: ``(n, n)`` float64, the inner products of the clients' changes; n is at least 1.
            weights: what the updates count by without a rule; positive.
            attackers: how many clients may be hostile, for rules that must know.
        """


def norm_bound(gram: Tensor, weights: Sequence[float], *, attackers: int) -> list[Vote]:  # noqa: ARG001 - rules share a signature
    """Shrink each change to the median norm; of two middle norms, to the lower.

    Stands: a minority that sends large changes. Does not stand: changes of ordinary size in a bad
    direction, such as a flipped sign; they count as much as an honest client's.

    References:
        Sun et al. 2019, arXiv:1911.07963; the bound is the cohort's own median.
    """
    norms = _norms(gram)
    bound = median_low(norms)
    votes = []
    for weight, norm in zip(weights, norms, strict=True):
        share = 1.0 if norm <= bound else bound / norm
        reason = "" if share else "norm-bound: most of the clients sent no change at all"
        votes.append(Vote(weight=weight, share=share, reason=reason))
    return votes


def multi_krum(gram: Tensor, weights: Sequence[float], *, attackers: int) -> list[Vote]:
    """Exclude the ``attackers`` clients whose changes lie farthest from their nearest neighbours.

    A client's score is the sum of the squared distances to its ``n - attackers - 2`` nearest.

    Stands: ``attackers`` clients among ``2 · attackers + 3`` or more, if the honest ones lie
    closer to each other than to them. Does not stand: fewer clients than that, as after failures;
    small common deviations (ALIE); attackers that agree while honest sites differ much. An honest
    site with unusual data is excluded when nobody is hostile.

    References:
        Blanchard et al. 2017, arXiv:1703.02757.
    """
    clients = len(weights)
    squares = gram.diagonal()
    apart = (squares[:, None] + squares - 2 * gram).clamp(min=0)
    apart.fill_diagonal_(torch.inf)
    neighbours = max(1, clients - attackers - 2)
    scores = apart.sort(dim=1).values[:, :neighbours].sum(dim=1).sqrt().tolist()
    kept = max(1, clients - attackers)
    best = sorted(range(clients), key=scores.__getitem__)[:kept]
    limit = scores[best[-1]]
    return [
        Vote(weight=weight)
        if client in best
        else Vote(
            weight=weight,
            share=0.0,
            reason=f"multi-krum: its {neighbours} nearest are {scores[client]:.6g} away (root of "
            f"summed squares), those of the {kept} that are kept at most {limit:.6g}",
        )
        for client, weight in enumerate(weights)
    ]


def geometric_median(gram: Tensor, weights: Sequence[float], *, attackers: int) -> list[Vote]:  # noqa: ARG001 - rules share a signature
    """Weigh the clients so that their mean is the point of least weighted distance to them all.

    Weiszfeld's iteration in inner products: the mean's weights are ``wᵢ / ‖z - xᵢ‖``, z being the
    mean before. Distances below a millionth of the median norm count as that.

    Stands: less than half of the weight, whatever it sends, up to a bias that grows with how much
    the honest ones differ. Does not stand: many clients that shift it by little each; a client with
    half of the weight, so bound the weights. Nobody is excluded.

    References:
        Pillutla et al. 2019, arXiv:1912.13445 (the smoothed Weiszfeld algorithm).
    """
    norms = _norms(gram)
    smallest = _SMOOTHING * median_low(norms) or _SMOOTHING**2 * max(norms) or 1.0
    given = torch.tensor(weights, dtype=torch.float64)
    shares = given / given.sum()
    for _ in range(_STEPS):
        image = gram @ shares
        apart = gram.diagonal() - 2 * image + shares @ image
        pulls = given / apart.clamp(min=smallest**2).sqrt()
        before, shares = shares, pulls / pulls.sum()
        if bool(((shares - before).abs() <= _CONVERGED).all()):
            break
    return [Vote(weight=weight) for weight in (shares * given.sum()).tolist()]


def cosine_filter(gram: Tensor, weights: Sequence[float], *, attackers: int) -> list[Vote]:
    """Exclude who points against most of the others, and bound the norms of the rest.

    A client is excluded when the median of its cosines with the others (of two middle ones, the
    higher) is not positive. Changes of zero have no direction: they neither judge nor are judged.

    Stands: a minority that flips signs or pushes elsewhere, at any scale, if the honest ones point
    the same way pairwise. Does not stand: changes that agree with the majority but for a little
    (ALIE, backdoors). Where honest sites point apart, they are excluded too, in the end all of
    them; with two clients, both.

    References:
        After FLTrust, Cao et al. 2020, arXiv:2012.13995; the other clients take the place of the
        data that its server has.
    """
    norms = _norms(gram)
    moving = [client for client, norm in enumerate(norms) if norm]
    typical = {}
    for client in moving:
        cosines = [
            float(gram[client, other]) / norms[client] / norms[other]
            for other in moving
            if other != client
        ]
        typical[client] = median_high(cosines) if cosines else 1.0
    kept = [client for client in range(len(norms)) if typical.get(client, 1.0) > 0]
    among = gram[kept][:, kept], [weights[client] for client in kept]
    bounded = norm_bound(*among, attackers=attackers) if kept else []
    votes = dict(zip(kept, bounded, strict=True))
    return [
        votes.get(client)
        or Vote(
            weight=weight,
            share=0.0,
            reason=f"cosine-filter: the median cosine with the others is {typical[client]:.2g}",
        )
        for client, weight in enumerate(weights)
    ]


RULES: Mapping[Robust, Rule] = {
    "norm-bound": norm_bound,
    "multi-krum": multi_krum,
    "geometric-median": geometric_median,
    "cosine-filter": cosine_filter,
}
"""The rules that weigh clients, by their names in a recipe."""


def _norms(gram: Tensor) -> list[float]:
    norms: list[float] = gram.diagonal().clamp(min=0).sqrt().tolist()
    return norms
