"""What privacy a site has spent: durable, hash-chained, charged before anything is drawn."""

from fedlora.privacy.ledger.ledger import Committed, Ledger
from fedlora.privacy.ledger.rows import DEFAULT_ACCOUNT

__all__ = ["DEFAULT_ACCOUNT", "Committed", "Ledger"]
