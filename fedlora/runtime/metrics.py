"""What a site measured, as the numbers that it sends, and back."""

import re
from collections.abc import Mapping

from fedlora.errors import WireError
from fedlora.training.evaluation import Evaluation, Share

_SHARE = re.compile(r"eval_([a-z0-9_]+)_(sum|count)(|\.[0-9]+)")


def eval_metrics(evaluation: Evaluation) -> dict[str, int | float]:
    """Return an evaluation as metrics, which add up as it does.

    A share ``name`` gives ``eval_name_sum`` and ``eval_name_count``; one of a class, ``name.k``,
    has the class at the end.
    """
    metrics: dict[str, int | float] = {
        "eval_loss_sum": evaluation.loss_sum,
        "eval_tokens": evaluation.tokens,
    }
    for name, share in evaluation.shares.items():
        kind, dot, index = name.partition(".")
        metrics[f"eval_{kind}_sum{dot}{index}"] = share.total
        metrics[f"eval_{kind}_count{dot}{index}"] = share.count
    return metrics


def shares_of(metrics: Mapping[str, int | float]) -> dict[str, Share]:
    """Return the shares among a site's metrics.

    Raises:
        WireError: one is not whole, or not between none and all.
    """
    found: dict[str, dict[str, int | float]] = {}
    for name, value in metrics.items():
        if match := _SHARE.fullmatch(name):
            kind, part, index = match.groups()
            found.setdefault(kind + index, {})[part] = value
    found.pop("loss", None)
    return {name: _share(name, parts) for name, parts in found.items()}


def _share(name: str, parts: Mapping[str, int | float]) -> Share:
    total, count = parts.get("sum"), parts.get("count")
    if isinstance(total, int) and isinstance(count, int) and 0 <= total <= count:
        return Share(total=total, count=count)
    raise WireError(
        f"{name}: a sum of at least 0 and a count of no less were expected, both whole, but they "
        f"are {total} and {count}."
    )
