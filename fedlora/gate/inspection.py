"""Inspection of a reply's values: pure functions, the same at the gate and the aggregator."""

import math
from collections.abc import Mapping

from fedlora.adapter import AdapterSpec, AdapterUpdate, InspectedUpdate
from fedlora.errors import InspectionError

ALLOWED_METRICS = frozenset({"train_loss", "eval_loss_sum", "eval_tokens"})
"""The only numbers besides an adapter that may leave a site."""


def inspect_update(
    update: AdapterUpdate, *, spec: AdapterSpec, max_examples: int
) -> InspectedUpdate:
    """Return the update as one that may be encoded for the network.

    Guarantees:
        The result has exactly the tensors of ``spec``, all of its values are finite, and its number
        of examples is from 1 to ``max_examples``.

    Raises:
        InspectionError: the update is not like that.
    """
    if update.spec.digest != spec.digest:
        came, wanted = update.spec.digest[:12], spec.digest[:12]
        raise InspectionError(f"The update is of adapter {came}, but {wanted} is trained.")
    if not 1 <= update.num_examples <= max_examples:
        raise InspectionError(
            f"num_examples: the update claims {update.num_examples}, but the recipe allows 1 to "
            f"{max_examples} in a round (local_steps times the batch size)."
        )
    if not update.is_finite():
        broken = [tensor.name for tensor, values in update.factors() if not values.isfinite().all()]
        others = f" and of {len(broken) - 1} other tensors" if broken[1:] else ""
        raise InspectionError(
            f"Values of {broken[0]}{others} are not finite: the training diverged. Lower "
            "learning_rate."
        )
    return InspectedUpdate(spec=update.spec, values=update.values, num_examples=update.num_examples)


def inspect_metrics(metrics: Mapping[str, int | float]) -> dict[str, int | float]:
    """Return the metrics when each is on the list of what may leave and is finite.

    Raises:
        InspectionError: one is not.
    """
    for name, value in metrics.items():
        if name not in ALLOWED_METRICS:
            allowed = ", ".join(sorted(ALLOWED_METRICS))
            raise InspectionError(
                f"The metric {name!r:.80} may not leave the site; allowed are {allowed}."
            )
        if not math.isfinite(value):
            raise InspectionError(f"The metric {name} is {value}; a finite number was expected.")
    return dict(metrics)
