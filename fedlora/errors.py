"""Every error that fedlora raises on purpose.

::

    FedloraError
    ├── RecipeError        a recipe key is unknown, of the wrong type, or in conflict with another
    ├── DataError          a data file is missing, empty, broken, or of no known format
    │   └── RowError       one row of it cannot be learned from; the rows after it may
    ├── BaseModelError     a base model is not there, or cannot carry the adapter asked for
    ├── AdapterError       an adapter's tensors are not what its specification says
    ├── WireError          bytes from the network are not the adapter that was expected
    ├── InspectionError    the gate refuses to let a reply leave the site
    ├── PolicyError        the site's policy does not allow what the aggregator asks for
    │   ├── NotYetError    it may later: a person has not said yes, or these are not its hours
    │   └── PeerError      another site is not pinned, or is pinned to another key
    ├── SecureSumError     a secure sum cannot go on: a key, share or sealed message is not right
    │   └── SummedError    an update is in a sum already: in one over others it would show
    ├── EvidenceError      the evidence log is not whole, or not what was written
    ├── EnrolmentError     a site is not admitted, or a bundle or key is not the one expected
    ├── BudgetError        a privacy budget does not allow what is asked, or its ledger is not whole
    ├── ReleaseError       a release or index is not what was signed, not there, or not to be used
    ├── RunError           a run cannot start, go on, or be resumed
    │   └── DivergedError  a site's training diverged: its update would be poison
    └── StorageError       a file cannot be written: no permission, no space

A message says what was expected, what came, and what to do. The command line prints it without a
traceback and exits with code 2.
"""


def plain(text: str) -> str:
    """Return a message as a terminal may have it: what would move its cursor is shown instead.

    Messages quote names that strangers have chosen; the ends of lines stay.
    """
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


class FedloraError(Exception):
    """Base of all errors that a user can act on."""


class RecipeError(FedloraError):
    """A recipe key is unknown, of the wrong type, or in conflict with another."""


class DataError(FedloraError):
    """A data file is missing, empty, broken, or of no known format."""


class RowError(DataError):
    """One row cannot be learned from; those after it may."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}" if where else reason)
        self.where = where
        """Place of the row, such as ``notes.jsonl, line 3``."""
        self.reason = reason
        """What is wrong and what to do, without a value of the row's."""


class BaseModelError(FedloraError):
    """A base model is not there, or cannot carry the adapter that the recipe asks for."""


class AdapterError(FedloraError):
    """An adapter's tensors are not what its specification says."""


class WireError(FedloraError):
    """Bytes from the network are not the adapter that was expected."""


class InspectionError(FedloraError):
    """The gate refuses to let a reply leave the site."""


class PolicyError(FedloraError):
    """The site's policy does not allow what the aggregator asks for."""


class NotYetError(PolicyError):
    """The site may answer later: a person has not said yes yet, or these are not its hours."""


class PeerError(PolicyError):
    """Another site is not pinned by the operator, or is pinned to another key."""


class SecureSumError(FedloraError):
    """A secure sum cannot go on: a key, a share or a sealed message is not what it must be."""


class SummedError(SecureSumError):
    """An update is in a sum already: in another over other members it would show."""


class EvidenceError(FedloraError):
    """The evidence log is not whole, or not what was written."""


class EnrolmentError(FedloraError):
    """A site is not admitted, or a bundle or key is not the one expected."""


class BudgetError(FedloraError):
    """A privacy budget does not allow what is asked, or its ledger is not whole."""


class ReleaseError(FedloraError):
    """A release or an index is not what was signed, not there, or not to be used."""


class RunError(FedloraError):
    """A run cannot start, go on, or be resumed."""


class DivergedError(RunError):
    """A site's training diverged; its update would be poison to the others."""


class StorageError(FedloraError):
    """A file cannot be written: no permission, no space."""
