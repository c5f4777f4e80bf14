"""One round at the aggregator: admit each update, spool it, fold the spool in cohort order.

Sums in arrival order would not be reproducible, so an update is folded when every client before it
in the cohort has answered or was given up. Two updates are in memory at most.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from fedlora.adapter import AdapterState, AdapterUpdate
from fedlora.aggregation import Aggregator
from fedlora.errors import FedloraError, WireError
from fedlora.gate.inspection import inspect_metrics, inspect_update
from fedlora.recipe import Recipe
from fedlora.runtime.spool import Spool
from fedlora.wire.codec import Envelope, decode_update


@dataclass(kw_only=True)
class Fold:
    """The fold of one round. Each client of the cohort is settled exactly once."""

    recipe: Recipe
    envelope: Envelope
    cohort: Sequence[str]
    aggregator: Aggregator
    spool: Spool
    max_norm: float | None
    """Largest norm that an update may have; none in the first round, or when nothing moved yet."""
    folded: dict[str, dict[str, Any]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    _spooled: set[str] = field(default_factory=set)
    _next: int = 0

    def begin(self, global_adapter: AdapterState) -> None:
        """Start the sum, with what was spooled before a stop."""
        self.aggregator.begin(global_adapter)
        kept = self.spool.sites() & set(self.cohort)
        self._spooled = {site for site in kept if self._is_good(site)}
        self._advance()

    @property
    def open(self) -> tuple[str, ...]:
        """The clients that are not settled yet, in cohort order."""
        settled = self._spooled | self.refused.keys()
        return tuple(site for site in self.cohort if site not in settled)

    def admit(self, site: str, payload: bytes, metrics: Mapping[str, int | float]) -> None:
        """Check a client's update, keep it, and fold whatever is complete up to here.

        Raises:
            WireError: the update is not what this round expects, or the client has answered.
            InspectionError: its values or metrics are not acceptable.
        """
        if site not in self.open:
            raise WireError(f"{site} has already answered round {self.envelope.round}.")
        self._check(payload)
        self.spool.put(site, payload, inspect_metrics(metrics))
        self._spooled.add(site)
        self._advance()

    def refuse(self, site: str, reason: str) -> None:
        """Settle a client without an update; one whose update was accepted stays accepted."""
        if site in self.open:
            self.refused[site] = reason
            self._advance()

    def median_norm(self) -> float | None:
        """Return the median norm of the folded updates."""
        return median(f["norm"] for f in self.folded.values()) if self.folded else None

    def _is_good(self, site: str) -> bool:
        """Tell whether a client's spooled update is good; if it is not, the client is asked again.

        A disk may have damaged it, or the recipe was put right between stop and restart.
        """
        try:
            self._check(self.spool.get(site)[0])
        except (FedloraError, ValueError, OSError):
            return False
        return True

    def _check(self, payload: bytes) -> AdapterUpdate:
        limit = self.recipe.wire.max_bytes
        update = decode_update(payload, self.envelope, max_bytes=limit)
        inspect_update(update, spec=self.envelope.spec, max_examples=self.recipe.max_examples)
        norm = update.norm()
        if self.max_norm and norm > self.max_norm:
            raise WireError(
                f"The update's norm {norm:.3g} is above {self.max_norm:.3g}, which is "
                f"{self.recipe.federation.max_update_norm:g} times the last round's median "
                "(federation.max_update_norm)."
            )
        return update

    def _advance(self) -> None:
        while self._next < len(self.cohort) and self.cohort[self._next] not in self.open:
            site = self.cohort[self._next]
            self._next += 1
            if site in self._spooled:
                self._fold(site)

    def _fold(self, site: str) -> None:
        payload, metrics = self.spool.get(site)
        update = self._check(payload)
        weight = float(update.num_examples)
        self.aggregator.add(update, weight)
        self.folded[site] = {
            **metrics,
            "num_examples": update.num_examples,
            "weight": weight,
            "norm": update.norm(),
            "bytes": len(payload),
        }
