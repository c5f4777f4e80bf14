"""What a run says of its secure sums, before it and after it: on whom they rest, what came of them.

What ``privacy.unit`` promises beside them is said elsewhere (``privacy_statement``).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from fedlora.recipe import Recipe
from fedlora.runtime.fixed_point import fixed_point_of
from fedlora.runtime.reports.format import counted
from fedlora.runtime.secure_terms import terms_of

_AGGREGATORS: Mapping[str | None, str] = {
    "malicious-aggregator": "that may lie",
    "honest-but-curious": "that follows the protocol",
}
_HOLDS: Mapping[str | None, str] = {
    "malicious-aggregator": "even if it lied",
    "honest-but-curious": "if it followed the protocol",
}
_LISTED = 10
"""Rounds that are named one by one; of more only how many they are is said."""


def summary(recipe: Recipe) -> str:
    """Return on whom a run's sums rest, and how exact they are, in a few words.

    The error is that of a sum of the fewest, each of which trains on all examples of its round.

    Raises:
        SecureSumError: there are no such sums.
    """
    terms, fixed = terms_of(recipe), fixed_point_of(recipe)
    opened = f"{terms.threshold} of {terms.members} open it"
    if terms.degree is not None:
        opened = (
            f"each of {terms.members} shares keys with {terms.degree}, {terms.threshold} of whom "
            f"open its mask; up to {terms.most_lost} may drop out"
        )
    error = fixed.error_bound(terms.fewest_summed * fixed.weights_up_to)
    wraps = f", wrong with a probability of {fixed.wrap_probability:.0e}" if fixed.noise else ""
    return (
        f"{opened}; {recipe.colluders or 'none'} may collude with an aggregator "
        f"{_AGGREGATORS[recipe.privacy.threat_model]}; off by at most {error:.1e} a value{wraps}"
    )


def sentences(recipe: Recipe, records: Sequence[Mapping[str, Any]]) -> Sequence[str]:
    """Return what the aggregator saw in place of updates, on whom that rests, what it hides not.

    Args:
        recipe: of a run with secure aggregation.
        records: of its rounds.

    Raises:
        SecureSumError: there are no such sums.
    """
    seen = [_seen(recipe, summed)] if (summed := sums_of(records)) else []
    return [_promise(recipe), *seen, _not_hidden(recipe)]


def sums_of(records: Sequence[Mapping[str, Any]]) -> Mapping[int, Mapping[str, Any]]:
    """Return what the records say of each round's sum, by its number."""
    return {r["round"]: r["secure_sum"] for r in records if "secure_sum" in r}


def _promise(recipe: Recipe) -> str:
    terms, source = terms_of(recipe), "Bonawitz et al. 2017"
    fewest = terms.fewest_summed
    if terms.degree is not None:
        source = "Bell et al. 2020, but for a probability of 2⁻⁴⁰ in each attempt"
    most = recipe.colluders
    few = f"at most {most} of them tell it what they know" if most else "none of them colludes"
    return (
        "Sites masked their updates, so that the aggregator had no update, training loss or number "
        f"of examples of a single site, but sums over {fewest} or more of {terms.members} alone: "
        f"{_HOLDS[recipe.privacy.threat_model]}, and while {few} ({source}). At least "
        f"{fewest - most} honest sites are then in each sum. This is of sites "
        "that are deployed; a simulation has all keys in one process."
    )


def _seen(recipe: Recipe, summed: Mapping[int, Mapping[str, Any]]) -> str:
    """Return which sums were opened, and in which rounds sites were missing."""
    opened = {number: facts for number, facts in summed.items() if "abandoned" not in facts}
    said = f"Of {counted(len(summed), 'round')}, {len(opened) or 'none'} gave a sum"
    if opened:
        counts = [facts["summed"] for facts in opened.values()]
        ends = " to ".join(dict.fromkeys(map(str, (min(counts), max(counts)))))
        error = max(facts["error_bound"] for facts in opened.values())
        said += f", over {ends} sites, the mean off by at most {error:.1e} a value"
        few = [n for n, facts in opened.items() if facts["summed"] < recipe.cohort_size]
        said += f". Sites had dropped out {_rounds(few)}" if few else ""
    if abandoned := [number for number in summed if number not in opened]:
        said += f". Nothing was opened, and the adapter left as it was, {_rounds(abandoned)}"
    return f"{said}."


def _not_hidden(recipe: Recipe) -> str:
    return (
        "Not hidden: the sums, which are made of training data as updates are; who took part, who "
        "dropped out and when; and what sums over different sites tell by their difference, since "
        "a site's updates of neighbouring rounds are alike. Colluders can subtract their own. "
        f"Nobody else could look at an update: that its norm was at most "
        f"{recipe.secure_clip_norm:g}, and that it was an honest one, is its site's word."
    )


def _rounds(numbers: Sequence[int]) -> str:
    if len(numbers) > _LISTED:
        return f"in {len(numbers)} rounds"
    listed = ", ".join(map(str, numbers))
    return f"in round{'s' if len(numbers) > 1 else ''} {listed}"
