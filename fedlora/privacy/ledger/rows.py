"""What a ledger's rows say, and the text that is kept and hashed of each."""

import json
import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from fedlora.errors import BudgetError
from fedlora.privacy.charge import Charge

Purpose = Literal["train", "evaluate"]

DEFAULT_ACCOUNT = "default"
"""All of a site's data belongs to it, unless the operator says otherwise."""


@dataclass(frozen=True, kw_only=True)
class AccountRow:
    """The operator opens an account."""

    account: str
    epsilon: float | None
    """Most that all charges of the account together may have; none: they are only recorded."""
    delta: float
    time: str
    """UTC, ISO 8601; likewise in the other rows."""


@dataclass(frozen=True, kw_only=True)
class ReservationRow:
    """A run is about to start: the most that it plans to draw."""

    account: str
    run: str
    maximum: tuple[Charge, ...]
    time: str


@dataclass(frozen=True, kw_only=True)
class ChargeRow:
    """A round, or a query of an evaluation, is about to draw noise."""

    account: str
    run: str
    purpose: Purpose
    number: int
    """Of the round or query in its run."""
    attempt: int
    """1, or more where the round is played again with fresh noise."""
    charge: Charge
    data: str
    """Fingerprint of the data (HMAC with the site's key); nothing is looked up by it."""
    time: str


@dataclass(frozen=True, kw_only=True)
class ClosureRow:
    """A run has ended: what it reserved and never drew is free again."""

    account: str
    run: str
    time: str


Row = AccountRow | ReservationRow | ChargeRow | ClosureRow

_KINDS: dict[str, type[Row]] = {
    "account": AccountRow,
    "reservation": ReservationRow,
    "charge": ChargeRow,
    "closure": ClosureRow,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}


def text_of(row: Row) -> str:
    """Return canonical JSON: keys sorted, no spaces, ASCII, floats as Python's ``repr``.

    A granularity that is none is left out: rows of normal noise never had one.

    Guarantees:
        - ``row_of`` gives the row back.
    """
    facts = {"kind": _NAMES[type(row)], **asdict(row, dict_factory=_without_absent_granularity)}
    return json.dumps(facts, sort_keys=True, separators=(",", ":"), allow_nan=False)


def row_of(text: bytes, *, where: str) -> Row:
    """Return the row that a text says.

    Args:
        text: what ``text_of`` made.
        where: file and row, for the error.

    Raises:
        BudgetError: the text is not a row of this version.
    """
    try:
        facts: dict[str, Any] = json.loads(text)
        kind = _KINDS[facts.pop("kind")]
        if kind is ReservationRow:
            facts["maximum"] = tuple(Charge(**charge) for charge in facts["maximum"])
        if kind is ChargeRow:
            facts["charge"] = Charge(**facts["charge"])
        return kind(**facts)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BudgetError(
            f"{where} says what this version of fedlora does not know ({error!r}). Use the version "
            "that wrote it, or a newer one."
        ) from None


def _without_absent_granularity(facts: list[tuple[str, Any]]) -> dict[str, Any]:
    return dict(fact for fact in facts if fact != ("granularity", None))


def require_budget(account: str, *, epsilon: float | None, delta: float) -> None:
    """Do nothing if these are a budget.

    Raises:
        BudgetError: ε is given and not a positive number, or δ is not between 0 and 1.
    """
    if not (epsilon is None or 0 < epsilon < math.inf):
        raise BudgetError(
            f"Account {account}: ε must be a positive number, or none for no limit; it is "
            f"{epsilon:g}."
        )
    if not 0 < delta < 1:
        raise BudgetError(f"Account {account}: δ must lie between 0 and 1; it is {delta:g}.")


def require_charge(charge: Charge) -> None:
    """Do nothing if this can be charged.

    Raises:
        BudgetError: a number is not finite or outside its range.
    """
    sound = {
        "sensitivity": 0 < charge.sensitivity < math.inf,
        "noise_multiplier": 0 < charge.noise_multiplier < math.inf,
        "sampling_rate": 0 < charge.sampling_rate <= 1,
        "steps": charge.steps >= 1,
        "granularity": charge.granularity is None or charge.granularity >= 1,
    }
    for name, holds in sound.items():
        if not holds:
            raise BudgetError(
                f"A charge must have positive, finite numbers and a sampling_rate of at most 1; "
                f"its {name} is {getattr(charge, name):g}."
            )
