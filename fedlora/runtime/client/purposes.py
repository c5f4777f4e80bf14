"""What an instruction asks a deployed site for."""

from typing import Literal, get_args

from flwr.app import Message

from fedlora.errors import InspectionError
from fedlora.gate.evidence.entries import Purpose
from fedlora.runtime.site.secure_sum import stage_of


def planned_purpose(message: Message) -> Literal["train", "evaluate"]:
    """Return what a recipe can plan.

    Raises:
        InspectionError: something else is asked.
        WireError: an unknown stage is.
    """
    kind = message.metadata.message_type
    if kind == "train" or stage_of(message):
        return "train"
    if kind == "evaluate":
        return "evaluate"
    raise InspectionError(
        f"A deployed site trains and evaluates, but {kind!r:.80} is asked. It says who it is by "
        "its key alone."
    )


def purpose_of(message: Message) -> Purpose:
    """Return what evidence says that an instruction was for; of what is unknown, ``query``."""
    kind = message.metadata.message_type
    known: dict[str, Purpose] = {purpose: purpose for purpose in get_args(Purpose)}
    return known.get(kind) or known.get(kind.partition(".")[0]) or "query"
