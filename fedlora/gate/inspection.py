"""Inspection of a reply's values: pure functions, the same at the gate and the aggregator."""

import math
from collections.abc import Mapping

from fedlora.adapter import AdapterSpec, AdapterUpdate, InspectedUpdate
from fedlora.errors import InspectionError
from fedlora.sections import PrivacyUnit

NOISED_METRICS = frozenset({"eval_loss_sum", "eval_tokens"})
"""The only numbers besides an adapter that may leave a site under privacy: a sum that was noised,
and a public number to divide it by."""

ALLOWED_METRICS = NOISED_METRICS | {"train_loss"}
"""The only numbers besides an adapter that may leave a site."""


def inspect_update(update: AdapterUpdate, *, spec: AdapterSpec, examples: range) -> InspectedUpdate:
    """Return the update as one that may be encoded for the network.

    Guarantees:
        The result has exactly the tensors of ``spec``, all of its values are finite, and its number
        of examples is one of ``examples``.

    Raises:
        InspectionError: the update is not like that.
    """
    if update.spec.digest != spec.digest:
        came, wanted = update.spec.digest[:12], spec.digest[:12]
        raise InspectionError(f"The update is of adapter {came}, but {wanted} is trained.")
    if update.num_examples not in examples:
        allowed = f"{examples[0]} to {examples[-1]}" if len(examples) > 1 else str(examples[0])
        raise InspectionError(
            f"num_examples: the update claims {update.num_examples}, but the recipe allows "
            f"{allowed} in a round (local_steps times the batch size)."
        )
    if not update.is_finite():
        broken = [tensor.name for tensor, values in update.factors() if not values.isfinite().all()]
        others = f" and of {len(broken) - 1} other tensors" if broken[1:] else ""
        raise InspectionError(
            f"Values of {broken[0]}{others} are not finite: the training diverged. Lower "
            "learning_rate."
        )
    return InspectedUpdate(spec=update.spec, values=update.values, num_examples=update.num_examples)


def inspect_metrics(
    metrics: Mapping[str, int | float], *, unit: PrivacyUnit
) -> dict[str, int | float]:
    """Return the metrics when each is on the list of what may leave and is finite.

    Args:
        metrics: by name.
        unit: what differential privacy hides.

    Raises:
        InspectionError: one is not.
    """
    allowed = ALLOWED_METRICS if unit == "none" else NOISED_METRICS
    for name, value in metrics.items():
        if name not in allowed:
            raise InspectionError(
                f"The metric {name!r:.80} may not leave the site; allowed are "
                f"{', '.join(sorted(allowed))}."
            )
        if not math.isfinite(value):
            raise InspectionError(f"The metric {name} is {value}; a finite number was expected.")
    return dict(metrics)
