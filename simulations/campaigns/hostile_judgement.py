"""What became of an instruction: what left, whether the trainer was asked, what is on record."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from flwr.app import Message

from fedlora.gate.evidence.entries import Decided, Entry, Received, Refused, Released
from fedlora.runtime.client import gatekeeper
from fedlora.runtime.site.mods import SAID
from simulations.campaigns.gated_site import GatedSite
from simulations.campaigns.hostile_trainer import Outcome


def judged(site: GatedSite, name: str, message: Message, *, asks_trainer: bool = False) -> Outcome:
    """Return what became of an instruction.

    Args:
        site: whose gate is asked.
        name: what is tried.
        message: the instruction.
        asks_trainer: whether what stops it is known to the trainer alone; it is asked, and refuses.
    """
    before, asked = site.gate.evidence.head(), len(site.trainer.recipes)
    with _log_of_gate() as said:
        reply = site.gate.answer(message)
    entries = [each.entry for each in site.gate.evidence.entries(after=before)]
    silent = reply.has_error() and reply.error.reason in SAID
    untouched = asks_trainer or len(site.trainer.recipes) == asked
    blocked = silent and untouched and _on_record(entries, message)
    return Outcome(name=name, tried="an instruction", blocked=blocked, by=_reason(entries, said))


def _on_record(entries: list[Entry], message: Message) -> bool:
    """Whether the log tells that the message came, and that an error left in its place."""
    about = [each for each in entries if isinstance(each, Received | Decided | Refused | Released)]
    kinds = {type(each) for each in about}
    ours = all(each.message == message.metadata.message_id for each in about)
    return ours and {Received, Refused} <= kinds and Released not in kinds


def _reason(entries: list[Entry], said: list[str]) -> str:
    """Return why, as the site's own log says it, in a line."""
    refused = [each for each in entries if isinstance(each, Refused)]
    if not refused:
        return "nothing"
    return f"{refused[-1].cause}: {' '.join(' '.join(said).split())}"


@contextmanager
def _log_of_gate() -> Iterator[list[str]]:
    """Yield what the gate says in its own log, in place of printing it."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger(gatekeeper.__name__)
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield said
    finally:
        logger.removeHandler(handler)
        logger.propagate = True


def honest(site: GatedSite, message: Message) -> Message:
    """Return the answer to what must not be refused.

    Raises:
        AssertionError: it was.
    """
    before = site.gate.evidence.head()
    reply = site.gate.answer(message)
    last = site.gate.evidence.entries(after=before)[-1].entry
    if reply.has_error() or not isinstance(last, Released):
        raise AssertionError(f"An honest instruction was refused: {last}")
    return reply
