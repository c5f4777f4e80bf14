"""What privacy a site has spent: durable, hash-chained, charged before anything is drawn."""

from fedlora.chained_file import EMPTY, Head
from fedlora.privacy.ledger.book import Balance
from fedlora.privacy.ledger.ledger import Committed, Ledger
from fedlora.privacy.ledger.rows import DEFAULT_ACCOUNT, ChargeRow, Purpose

__all__ = [
    "DEFAULT_ACCOUNT",
    "EMPTY",
    "Balance",
    "ChargeRow",
    "Committed",
    "Head",
    "Ledger",
    "Purpose",
]
