"""What the sites measured of a round's adapter, and why one of them has not."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedlora.errors import WireError
from fedlora.gate.inspection import inspect_metrics
from fedlora.recipe import Recipe
from fedlora.runtime.metrics import shares_of

_HELD_OUT = "eval_loss_sum", "eval_tokens"
_PUBLIC = "public_loss_sum", "public_tokens"
_LARGEST_LOSS = 1e6
"""Nats a token that are plausible: the surest wrong guess in float32 costs some 1e2."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Loss sums in nats, with the tokens that they are over, and shares with what they are of."""

    recipe: Recipe
    round: int
    held_out: dict[str, list[float]] = field(default_factory=dict)
    """By site, on its own held-out rows."""
    shares: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    """By site and name, of the same rows, where there are any."""
    public: dict[str, list[float]] = field(default_factory=dict)
    """By site that has a public text, on that."""
    unmeasured: dict[str, str] = field(default_factory=dict)
    """By site, why there is nothing of it."""

    def take(self, site: str, metrics: Mapping[str, int | float]) -> None:
        """Keep what a site has measured.

        Raises:
            InspectionError: a metric is none that a site may tell, or not finite.
            WireError: one is missing, there are no tokens that it could be of, or it is no loss.
        """
        values = inspect_metrics(metrics, unit=self.recipe.privacy.unit)
        if self.round in self.recipe.federation.evaluated_rounds:
            shares = {name: [s.total, s.count] for name, s in shares_of(values).items()}
            self.held_out[site] = _pair(values, _HELD_OUT)
            if shares:
                self.shares[site] = shares
        if values.keys() & set(_PUBLIC):
            self.public[site] = _pair(values, _PUBLIC)

    def facts(self) -> dict[str, Any]:
        """Return what the round's record says of it."""
        return {
            "evaluation": self.held_out,
            "shares": self.shares,
            "public": self.public,
            "unmeasured": self.unmeasured,
        }


def _pair(values: Mapping[str, int | float], names: tuple[str, str]) -> list[float]:
    missing = [name for name in names if name not in values]
    if missing:
        raise WireError(f"The reply holds no metric {missing[0]}.")
    loss_sum, tokens = (float(values[name]) for name in names)
    if tokens < 1:
        raise WireError(f"{names[1]} is {tokens:g}: at least 1 was expected.")
    if abs(loss_sum) > _LARGEST_LOSS * tokens:
        raise WireError(f"{names[0]} is {loss_sum:g} over {tokens:g} tokens, which is no loss.")
    return [loss_sum, tokens]
