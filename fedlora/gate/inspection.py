"""Inspection of a reply: pure functions. What a value must be like is the same at both ends.

The gate asks for one thing more: leave to send, which a private answer has by its charge alone.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from fedlora.adapter import AdapterSpec, AdapterUpdate, InspectedUpdate
from fedlora.errors import InspectionError
from fedlora.gate.metrics import ALLOWED, NOISED, PUBLIC, kind_of
from fedlora.gate.policy import Policy
from fedlora.privacy.ledger import Purpose
from fedlora.sections import PrivacyUnit


@dataclass(frozen=True, kw_only=True)
class Leave:
    """Leave to send one answer, which a site that protects examples has by a charge alone.

    Raises:
        InspectionError: examples are to be hidden, but the answer was not charged.
    """

    unit: PrivacyUnit
    """What differential privacy hides; sites pay for examples alone."""
    purpose: Purpose
    """What was asked for."""
    charges: int
    """Rows of that purpose, for this account, run and round, that the site's ledger has got since
    the answer was asked for."""
    policy: Policy | None = None
    """The operator's; none in a simulation."""

    def __post_init__(self) -> None:
        if self.unit == "example" and self.charges < 1:
            raise InspectionError(
                "The answer was not charged: the site's ledger has no new row for its run and "
                "round. It does not leave; do not train here before the cause is found."
            )

    def inspect_update(
        self, update: AdapterUpdate, *, spec: AdapterSpec, examples: range
    ) -> InspectedUpdate:
        """Return the update as one that may be encoded for the network.

        Raises:
            InspectionError: as ``require_sound``.
            PolicyError: the policy does not allow its norm.
        """
        require_sound(update, spec=spec, examples=examples)
        if self.policy:
            self.policy.require_update(update)
        return InspectedUpdate(
            spec=update.spec, values=update.values, num_examples=update.num_examples
        )

    def inspect_metrics(self, metrics: Mapping[str, int | float]) -> dict[str, int | float]:
        """Return the metrics when each may leave, without those that the policy withholds.

        Raises:
            InspectionError: as ``inspect_metrics``; or there are some with a private update, whose
                charge is for the update alone.
            PolicyError: the policy does not allow one.
        """
        if metrics and self.unit != "none" and self.purpose == "train":
            raise InspectionError("Under privacy an update leaves without metrics.")
        if self.policy:
            metrics = self.policy.without_withheld(metrics)
            self.policy.require_metrics(metrics)
        return inspect_metrics(metrics, unit=self.unit)


def require_sound(update: AdapterUpdate, *, spec: AdapterSpec, examples: range) -> None:
    """Do nothing if an update's values are such that it may leave a site, or be admitted.

    Guarantees:
        It has exactly the tensors of ``spec``, all of its values are finite, and its number of
        examples is one of ``examples``.

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
    allowed = ALLOWED if unit == "none" else NOISED | PUBLIC
    return _require_listed(metrics, allowed)


def inspect_public_metrics(
    metrics: Mapping[str, int | float], *, policy: Policy | None = None
) -> dict[str, int | float]:
    """Return the metrics when all are of the public text: no charge is needed for them.

    Raises:
        InspectionError: one is not, or is not finite.
        PolicyError: the policy does not allow one.
    """
    if policy:
        policy.require_metrics(metrics)
    return _require_listed(metrics, PUBLIC)


def _require_listed(
    metrics: Mapping[str, int | float], allowed: frozenset[str]
) -> dict[str, int | float]:
    for name, value in metrics.items():
        if kind_of(name) not in allowed:
            raise InspectionError(
                f"The metric {name!r:.80} may not leave the site; allowed are "
                f"{', '.join(sorted(allowed))}."
            )
        if not math.isfinite(value):
            raise InspectionError(f"The metric {name} is {value}; a finite number was expected.")
    return dict(metrics)
