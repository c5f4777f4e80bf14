"""What the trainer does with one question: it calls the very handlers of every other site."""

import faulthandler
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from flwr.app import Context, Message, RecordDict
from flwr.common.constant import PARTITION_ID_KEY
from flwr.supercore.task_identity import TaskIdentity

from fedlora.errors import BudgetError, FedloraError, WireError
from fedlora.privacy.ledger import Committed
from fedlora.recipe import Recipe
from fedlora.runtime import records
from fedlora.runtime.client.curves import own_curves
from fedlora.runtime.client.frames import (
    LONGEST_QUESTION,
    Answer,
    Ask,
    Channel,
    Charged,
    ChargeRequest,
    Failure,
    FromGate,
)
from fedlora.runtime.site import client
from fedlora.runtime.site.budget import Draw, charging

_LARGEST_ADAPTER = 2**40
"""Bytes; it is the gate that bounds them, by the recipe."""
_LONGEST_TEXT = 4000
_NODE = 1
_HANDLERS = {"train": client.train, "evaluate": client.evaluate}


def answer(channel: Channel) -> None:
    """Read a question and answer it.

    Raises:
        ConnectionError: the gate has gone.
        WireError: it asked for nothing that is known.
    """
    question, body = channel.receive(
        FromGate, longest=LONGEST_QUESTION, longest_body=_LARGEST_ADAPTER
    )
    if not isinstance(question, Ask):
        raise WireError("The gate committed what nobody asked for.")
    try:
        with _ended_after(question.seconds):
            metrics, payload = _worked(question, body, channel)
    except ConnectionError:
        raise
    except FedloraError as error:
        channel.send(Failure(error=type(error).__name__, text=str(error)[:_LONGEST_TEXT]))
    except Exception as error:  # noqa: BLE001 - whatever it is, the trainer goes on
        traceback.print_exc()
        text = "".join(traceback.format_exception_only(error)).strip()
        channel.send(Failure(error="RunError", text=text[:_LONGEST_TEXT]))
    else:
        channel.send(Answer(metrics=metrics), payload)


@contextmanager
def _ended_after(seconds: float) -> Iterator[None]:
    """End this process if the block takes longer, and say in the log where it was."""
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def _worked(question: Ask, body: bytes, channel: Channel) -> tuple[dict[str, int | float], bytes]:
    """Return the metrics and the encoded increment, if any, of a question."""
    with charging(lambda _recipe, _site, draw: _charged(channel, draw)), own_curves(question):
        reply = _HANDLERS[question.purpose](_message(question, body), _context(question))
    trained = question.purpose == "train"
    return records.metrics_of(reply.content), records.unpack(reply.content) if trained else b""


def _charged(channel: Channel, draw: Draw) -> Committed:
    """Return the gate's word that a draw is on disk.

    Raises:
        BudgetError: it committed another.
    """
    channel.send(
        ChargeRequest(purpose=draw.purpose, number=draw.number, charge=draw.charge, data=draw.data)
    )
    said, _ = channel.receive(FromGate, longest=LONGEST_QUESTION, longest_body=0)
    if not isinstance(said, Charged) or said.row.charge != draw.charge:
        raise BudgetError("The gate did not commit what is to be drawn.")
    return Committed(row=said.row)


def _message(question: Ask, body: bytes) -> Message:
    """Return the question as the handlers are asked by every carrier."""
    task = records.Task(recipe=question.recipe, run=question.run, round=question.round)
    content = records.instruction(task.to_record(), records.pack(body))
    # Flower builds a message only inside a task; here as in fedlora.runtime.carriers.in_process.
    TaskIdentity.task_id, TaskIdentity.node_id, TaskIdentity.run_id = 1, _NODE, 1
    return Message(content, _NODE, question.purpose)


def _context(question: Ask) -> Context:
    """Return which site is asked."""
    names = Recipe.from_yaml(question.recipe).site_names
    return Context(
        run_id=1,
        node_id=_NODE,
        node_config={PARTITION_ID_KEY: names.index(question.site)},
        state=RecordDict(),
        run_config={},
    )
