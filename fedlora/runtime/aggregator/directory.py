"""What an aggregator knows of sites that authenticate themselves."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fedlora.runtime.aggregator.evidence_receipts import EvidenceReceipts


@dataclass(frozen=True, kw_only=True)
class Directory:
    """Who the nodes are, and how far the evidence log of each has been seen to come."""

    nodes: Callable[[], Mapping[int, str]]
    """Sites that the operator has admitted, by node id, as of now."""
    evidence: EvidenceReceipts
