"""An evidence log by hand, for tests: a site, its gate, and its aggregator."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedlora.gate.evidence.entries import (
    Configured,
    Decided,
    Entry,
    Purpose,
    Received,
    Refused,
    Released,
)
from fedlora.gate.evidence.log import EvidenceLog
from fedlora.gate.evidence.pack import Pack, export
from fedlora.gate.evidence.statements import Receipt
from fedlora.signing import Signer

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
POLICY, RECIPE = "policy: {}\n", "name: demo\n"


def signer(number: int = 1) -> Signer:
    """Return a key that is the same each time."""
    return Signer(Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32))


@dataclass
class Site:
    """A site whose clock moves by a second at each look."""

    folder: Path
    name: str = "north"
    gate: Signer = field(default_factory=signer)
    aggregator: Signer = field(default_factory=lambda: signer(2))
    now: datetime = NOON

    def clock(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now

    def log(self) -> EvidenceLog:
        """Open the log anew, as another process does."""
        return EvidenceLog(self.folder, site=self.name, signer=self.gate, clock=self.clock)

    def receipt(self, log: EvidenceLog) -> Receipt:
        head = log.head()
        facts = {"count": head.count, "hash": head.hash, "site": self.name}
        return Receipt.sign(self.aggregator, **facts)

    def answered(self, log: EvidenceLog, number: int, *, size: int = 1000) -> None:
        """Log a round that was answered."""
        log.append(received(log, number))
        log.append(decided(log, number))
        log.append(released(log, number, size=size))

    def exported(self, log: EvidenceLog, path: Path) -> Pack:
        key = self.aggregator.public
        export(log, path, aggregator=key, page=lambda entries: f"{len(entries)} entries")
        return Pack.read(path)


def asked(number: int, purpose: Purpose = "train", run: str = "demo-1") -> dict:
    return {"run": run, "round": number, "purpose": purpose, "message": f"{number:064x}"}


def configured(log: EvidenceLog) -> Entry:
    policy = log.keep(POLICY)
    return Configured(site=log.site, version="0.1.0", policy=policy, isolation="required")


def received(log: EvidenceLog, number: int) -> Entry:
    digests = {"payload": "a" * 64, "content": "b" * 64, "recipe": log.keep(RECIPE)}
    return Received(**asked(number), size=2000, spec="c" * 64, **digests)


def decided(log: EvidenceLog, number: int, *reasons: str) -> Entry:
    policy = log.keep(POLICY)
    return Decided(**asked(number), allowed=not reasons, reasons=reasons, policy=policy)


def released(log: EvidenceLog, number: int, *, size: int = 1000, run: str = "demo-1") -> Entry:
    digests = {"payload": "d" * 64, "content": "e" * 64, "recipe": log.keep(RECIPE)}
    return Released(
        **asked(number, run=run),
        size=size,
        spec="c" * 64,
        metrics=("train_loss",),
        ledger_count=number,
        ledger_hash="f" * 64,
        **digests,
    )


def refused(number: int) -> Entry:
    said = "The site's policy does not allow it."
    return Refused(**asked(number), said=said, cause="PolicyError")
