"""The gate's end of its connection to the trainer, of which it believes nothing.

A trainer reads data and adapters that others made, so it counts as hostile: what it says is read in
frames of bounded size and strict types, within a time, and what it sends is never passed on. The
gate builds the reply itself.
"""

import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from flwr.app import Message, MessageType

from fedlora.errors import (
    AdapterError,
    BaseModelError,
    DataError,
    FedloraError,
    InspectionError,
    RecipeError,
    RunError,
    WireError,
)
from fedlora.privacy.charge import Charge
from fedlora.privacy.ledger import Purpose
from fedlora.recipe import Recipe
from fedlora.runtime import records
from fedlora.runtime.charges import evaluation_charge, training_charge
from fedlora.runtime.client.frames import (
    LONGEST_ANSWER,
    Answer,
    Ask,
    Channel,
    Charged,
    ChargeRequest,
    Failure,
    FromTrainer,
    Hello,
)
from fedlora.runtime.client.probes import Report
from fedlora.runtime.site.budget import Charger, Draw, charged

_NAMES = frozenset(kind.__name__ for kind in FedloraError.__subclasses__())
_ERRORS = {
    kind.__name__: kind for kind in (AdapterError, BaseModelError, DataError, RecipeError, RunError)
}
"""Errors that a trainer may name. None of them lets the aggregator ask again: a trainer that could
say so would have a round charged as often as it likes."""


class TrainerLostError(RunError):
    """The trainer has ended, or is not there yet: whoever supervises it starts it; ask again."""


class TrainerLink:
    """Asks the trainer, over a connection that is made when it is needed.

    Args:
        path: of the trainer's socket.
        greet: is given the report of each trainer that is connected to, before it is asked for
            anything; it raises what is to keep it from being asked.
        charge: commits what the trainer is about to draw; to the site's ledger, if nothing else.
        patience: seconds in which a trainer must say hello.
    """

    def __init__(
        self,
        path: Path,
        *,
        greet: Callable[[Report], None],
        charge: Charger = charged,
        patience: float = 60,
    ) -> None:
        self._path, self._greet, self._charge = path, greet, charge
        self._patience = patience
        self._channel: Channel | None = None

    def ask(self, message: Message, *, recipe: str, site: str, timeout: float) -> Message:
        """Return what the trainer answers to an instruction, as the bare handler would.

        Guarantees:
            The reply holds the metrics and the bytes that came, in records that are made here, and
            nothing else. Of one question at most one charge is committed, and none but that which
            the recipe plans.

        Args:
            message: the instruction, to train or to evaluate.
            recipe: its recipe, with the site's own paths.
            site: which this is.
            timeout: seconds for all of it.

        Raises:
            TrainerLostError: it ended before it answered, or is not there.
            RunError: it did not answer in time.
            InspectionError: it said what a trainer does not say.
            FedloraError: what ``greet`` or ``charge`` raise, or what the trainer says went wrong.
        """
        deadline = time.monotonic() + timeout
        planned = Recipe.from_yaml(recipe)
        task = records.Task.of(message.content)
        question = Ask(
            purpose=_purpose(message),
            site=site,
            run=task.run,
            round=task.round,
            recipe=recipe,
            seconds=timeout,
        )
        try:
            channel = self._connected(deadline)
            channel.send(question, records.unpack(message.content), deadline=deadline)
            answer, payload = self._answer(channel, question, planned, deadline=deadline)
        except TimeoutError:
            self.close()
            raise RunError(
                f"The trainer did not answer within {timeout:g} s. See its log; if it is only "
                "slow, raise trainer.timeout in site.yaml."
            ) from None
        except OSError as error:
            self.close()
            raise TrainerLostError(f"The trainer has ended, or is not there ({error}).") from None
        except WireError as error:
            self.close()
            raise InspectionError(
                f"The trainer says what a trainer does not say: {error}"
            ) from None
        except BaseException:
            self.close()
            raise
        trained = question.purpose == "train"
        content = records.reply(answer.metrics, payload=payload if trained else None)
        return Message(content, reply_to=message)

    def close(self) -> None:
        """Close the connection; the next question makes another."""
        if self._channel:
            self._channel.close()
        self._channel = None

    def _connected(self, deadline: float) -> Channel:
        """Return the connection to a trainer that has said hello."""
        if self._channel is None:
            connection = socket.socket(socket.AF_UNIX)
            self._channel = Channel(connection)
            until = min(deadline, time.monotonic() + self._patience)
            try:
                connection.settimeout(self._patience)
                connection.connect(str(self._path))
                hello, _ = _received(self._channel, until)
            except TimeoutError:
                raise TrainerLostError("The trainer does not say hello yet.") from None
            if not isinstance(hello, Hello):
                raise WireError("It did not say how isolated it is.")
            self._greet(hello.report)
        return self._channel

    def _answer(
        self, channel: Channel, question: Ask, recipe: Recipe, *, deadline: float
    ) -> tuple[Answer, bytes]:
        """Return the answer to a question, and commit at most one charge before it comes."""
        paid = False
        while True:
            most = recipe.wire.max_bytes if question.purpose == "train" else 0
            said, payload = _received(channel, deadline, longest_body=most)
            if isinstance(said, Answer):
                return said, payload
            if isinstance(said, Failure):
                raise _error(said)
            if isinstance(said, Hello) or payload or paid:
                raise WireError(f"A frame of kind {said.kind} came where an answer was expected.")
            paid = True
            _require_planned(said, question, recipe)
            draw = Draw(
                run=question.run,
                purpose=question.purpose,
                number=question.round,
                charge=said.charge,
                data=said.data,
            )
            committed = self._charge(recipe, question.site, draw)
            channel.send(Charged(row=committed.row), deadline=deadline)


def _purpose(message: Message) -> Purpose:
    kind = message.metadata.message_type.partition(".")[0]
    return "train" if kind == MessageType.TRAIN else "evaluate"


def _received(
    channel: Channel, deadline: float, *, longest_body: int = 0
) -> tuple[Hello | ChargeRequest | Answer | Failure, bytes]:
    return channel.receive(
        FromTrainer, longest=LONGEST_ANSWER, longest_body=longest_body, deadline=deadline
    )


def _require_planned(request: ChargeRequest, question: Ask, recipe: Recipe) -> None:
    """Do nothing if this is the charge of the round that was asked for, by the recipe alone.

    Where the clip norm follows a quantile, it may be any: what a step costs is decided by its noise
    over its sensitivity.

    Raises:
        InspectionError: it is another.
    """
    if recipe.privacy.unit != "example":
        raise InspectionError(
            "The trainer asks to charge what has no privacy. Nothing was charged."
        )
    planned = _planned(question, recipe)
    if question.purpose == "train" and recipe.privacy.clip_quantile is not None:
        planned = replace(planned, sensitivity=request.charge.sensitivity)
    same = (request.purpose, request.number) == (question.purpose, question.round)
    if not same or request.charge != planned:
        raise InspectionError(
            f"The trainer asks to charge {request.purpose} {request.number} with {request.charge}, "
            f"but the recipe plans {question.purpose} {question.round} with {planned}. Nothing was "
            "charged."
        )


def _planned(question: Ask, recipe: Recipe) -> Charge:
    if question.purpose == "evaluate":
        return evaluation_charge(recipe)
    return training_charge(recipe, question.site, steps=recipe.federation.local_steps)


def _error(failure: Failure) -> FedloraError:
    """Return what the trainer says went wrong, in letters that can be printed."""
    if failure.error not in _NAMES:
        return InspectionError(f"The trainer failed with {failure.error!r}, which is no error.")
    kind = _ERRORS.get(failure.error, RunError)
    return kind("".join(sign if sign.isprintable() else " " for sign in failure.text))
