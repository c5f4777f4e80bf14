"""What an audit leaves: a page, and the same numbers as JSON."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedlora import atomic
from fedlora.runtime.audit import BOUND, CURVE, Audit
from fedlora.runtime.reports.page import render
from fedlora.runtime.reports.plots.audits import epsilon_by_round, roc

_LEAST_SHARE = 1e-3
DEMONSTRATION = (
    "A demonstration: the site was told to add no noise at all, while its accountant was told "
    "otherwise. What follows is not how fedlora treats records."
)
_LIMITS = (
    "Shown is what could be shown. A lower bound near 0 proves nothing: this way of showing stays "
    "far below the accountant even where the accountant is exact. The audit played one site, with "
    "this code, on this machine; it says nothing of what a site's operator runs, of a moving clip "
    "norm, or of evaluations. The attack on members is a simple one; better ones find more. What "
    "is measured on members, and the run without privacy that is beside this page, have no noise: "
    "publish neither."
)
_ATTACK = (
    "Who is given the published adapter and a row guesses whether a site trained on it, by how "
    "much the adapter lowers the row's loss. Members are the rows that were trained on, others "
    "those held out. AUC is the chance that a member looks more like one than another row (one "
    "half: by guessing); TPR at 1 % FPR is the share of members that are found while at most one "
    "in a hundred others is taken for one. In brackets, 95 % by bootstrap over the rows."
)


def verdict(audit: Audit) -> str:
    """Return what was found, in a sentence or two."""
    promise = f"(ε {audit.end.accounted:.3g}, δ {audit.recipe.privacy.delta:g})"
    if audit.caught:
        return (
            f"Caught: no mechanism that keeps to the accountant's {promise} lets so many canaries "
            "be told. Noise, clipping or sampling is not what was charged."
        )
    found = (
        f"Not caught: the canaries show an ε of at least {audit.end.shown:.2g}, and the accountant "
        f"promises {promise}."
    )
    if audit.could_catch:
        return found
    return (
        f"{found} So many canaries could not have caught anything, even without noise: audit a "
        "smaller epsilon, or more trained numbers."
    )


def write_audit(audit: Audit, folder: Path) -> Path:
    """Write ``audit.json`` and ``audit.html`` into a folder; return the latter.

    Raises:
        StorageError: they cannot be written.
    """
    atomic.write_file(folder / "audit.json", json.dumps(_facts(audit), indent=1))
    accounted = {point.round: point.accounted for point in audit.points}
    shown = {point.round: point.shown for point in audit.points}
    page = folder / "audit.html"
    html = render(
        "audit.html.j2",
        audit=audit,
        recipe=audit.recipe,
        folder=folder.name,
        verdict=verdict(audit),
        demonstration=DEMONSTRATION,
        explained=_explained(audit),
        bounds=epsilon_by_round(accounted, shown, most=audit.most),
        attack=_ATTACK,
        roc=roc(
            {f"{name} privacy": found.curve for name, found in audit.membership.items()},
            least=_LEAST_SHARE,
        ),
        limits=_LIMITS,
    )
    atomic.write_file(page, html)
    return page


def _explained(audit: Audit) -> str:
    return (
        f"Each of {audit.canaries:,} canaries was among the site's records by the toss of a coin: "
        "a record whose gradient is at one place of its own, as large as clipping lets it be. Who "
        "saw every step's private gradient, and knew the other records, said of those that stood "
        "out that they were in; how often was fixed beforehand. The lower bound holds for any "
        f"mechanism, after each round with {BOUND:.0%} confidence (Steinke, Nasr and Jagielski "
        f"2023); right guesses alone would have shown {audit.most:.3g}, the dashed line. The "
        "verdict also holds the guesses against the accountant's ε at many δ together, with "
        f"{CURVE:.0%} confidence (Mahloujifar, Melis and Chaudhuri 2025): a lower bound at one δ "
        "stays below about log(0.01 / δ), whatever happens."
    )


def _facts(audit: Audit) -> dict[str, Any]:
    facts = asdict(audit)
    facts["recipe"] = audit.recipe.model_dump(mode="json")
    facts["verdict"] = verdict(audit)
    return facts
