"""The logs that a site must not set back: its privacy ledger, and as a deployed site its evidence.

Each instruction says how far the aggregator has seen them come, each answer how far they are.
"""

from dataclasses import dataclass
from typing import Self

from flwr.app import RecordDict

from fedlora.recipe import Recipe
from fedlora.runtime import records
from fedlora.runtime.aggregator.evidence_receipts import EvidenceReceipts
from fedlora.runtime.aggregator.receipts import Receipts
from fedlora.runtime.run_folder import RunFolder


@dataclass(frozen=True)
class SiteLogs:
    """The aggregator's receipts of its sites' logs."""

    _ledgers: Receipts | None
    """None where sites keep no ledger, since they do not protect examples."""
    _evidence: EvidenceReceipts | None
    """None where sites are simulated."""

    @classmethod
    def of(cls, run: RunFolder, recipe: Recipe, *, evidence: EvidenceReceipts | None) -> Self:
        """Return the receipts that a run needs."""
        return cls(Receipts.of(run) if recipe.privacy.unit == "example" else None, evidence)

    def tell(self, site: str, content: RecordDict) -> None:
        """Say in an instruction how far the site's logs had come, and remember that it was said.

        Raises:
            StorageError: a receipt cannot be read.
        """
        if self._ledgers:
            records.add_head(content, self._ledgers.sent_to([site])[site])
        if self._evidence:
            for receipt in self._evidence.sent_to([site]).values():
                records.add_evidence(content, receipt)

    def take(self, site: str, content: RecordDict) -> None:
        """Keep how far a site says that its logs have come.

        Raises:
            WireError: it does not say so, or one is older than it was, or another.
            StorageError: a receipt cannot be kept.
        """
        if self._ledgers:
            self._ledgers.take(site, records.head_of(content))
        if self._evidence:
            self._evidence.take(site, content)
