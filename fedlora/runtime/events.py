"""What a run tells whoever watches it. The command line draws these; nothing depends on them."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fedlora.sections import LossUnit


@dataclass(frozen=True, kw_only=True)
class RunStarted:
    """The rounds begin, or go on after a stop."""

    rounds: int
    complete: int
    sites: tuple[str, ...]
    evaluated: bool
    """Whether the recipe has held-out losses measured."""
    unit: LossUnit
    """What such a loss is a mean over."""


@dataclass(frozen=True, kw_only=True)
class RoundStarted:
    """A round's instructions were sent."""

    round: int
    cohort: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class UpdateSettled:
    """One client's update was accepted, or refused with a reason."""

    round: int
    site: str
    train_loss: float | None = None
    """Not known for an update that was spooled before a stop."""
    refused: str | None = None


@dataclass(frozen=True, kw_only=True)
class AnswerAwaited:
    """One client has not answered yet; what was lost on the way is asked for again."""

    round: int
    site: str
    reason: str | None
    """What its gate says, or what was lost on the way; None once it has answered."""


@dataclass(frozen=True, kw_only=True)
class EvaluationFailed:
    """One client could not measure the adapter."""

    round: int
    site: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class RoundFinished:
    """A round is complete and on disk."""

    record: dict[str, Any]
    """The round's line of ``rounds.jsonl``."""


@dataclass(frozen=True, kw_only=True)
class BaselineProgress:
    """A step of the comparison that runs after the rounds."""

    name: str
    """The site that trains alone, or ``all data pooled``."""
    done: int
    """Steps taken, of ``total`` for all baselines."""
    total: int


@dataclass(frozen=True, kw_only=True)
class ReleasePublished:
    """A release is in the store; it was promoted, or held back with reasons."""

    round: int
    release: str
    promoted: str | None
    """The alias that points to it now, beside ``candidate``."""
    held_back: tuple[str, ...]
    """What it does not hold."""


@dataclass(frozen=True, kw_only=True)
class PublicationFailed:
    """A release could not be published, or its alias not moved; the next is tried again."""

    round: int
    reason: str


_log = logging.getLogger("fedlora")


Event = (
    RunStarted
    | RoundStarted
    | UpdateSettled
    | AnswerAwaited
    | EvaluationFailed
    | RoundFinished
    | BaselineProgress
    | ReleasePublished
    | PublicationFailed
)
Observer = Callable[[Event], None]


def log_event(event: Event) -> None:
    """Write an event to the log: the observer of a run that nobody watches."""
    _log.info("%s", event)
