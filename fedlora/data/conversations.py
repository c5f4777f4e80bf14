"""Conversations as they are written in rows: as lists of turns, or as prompt and answer."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedlora.data.examples import Example, Role, Turn
from fedlora.data.readers import RawRow
from fedlora.data.values import optional_string, string
from fedlora.errors import RowError

_ROLES: Mapping[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
}
_TOOLS = frozenset(
    {"tool", "tools", "function", "function_call", "function_response", "observation", "ipython"}
)
_NOT_KEPT = ("tool_calls", "function_call", "reasoning_content", "thinking")
"""Keys of a turn whose content would be lost."""


def messages(row: RawRow) -> Example:
    """Return a row of ``messages``: turns with ``role`` and ``content``."""
    return _conversation(row, turns(row.values.get("messages"), "messages", where=row.where))


def sharegpt(row: RawRow) -> Example:
    """Return a row of ``conversations``: turns with ``from`` and ``value``."""
    said = turns(row.values.get("conversations"), "conversations", where=row.where)
    return _conversation(row, (*_system(row), *said))


def prompt_completion(row: RawRow) -> Example:
    """Return a prompt and its completion, both texts or both lists of turns.

    Of lists the completion's assistant turns are learned, and none of the prompt's.
    """
    if not isinstance(row.values.get("completion"), list):
        asked = Turn("user", string(row.values, "prompt", where=row.where))
        answer = Turn("assistant", string(row.values, "completion", where=row.where, filled=True))
        _refuse_judgement(row)
        return Example((*_system(row), asked, answer), where=row.where)
    before = turns(row.values.get("prompt"), "prompt", where=row.where)
    after = turns(row.values["completion"], "completion", where=row.where)
    _refuse_judgement(row)
    return _conversation(row, (*map(only_read, before), *after))


def alpaca(row: RawRow) -> Example:
    """Return a row of ``instruction``, ``output`` and perhaps ``input``, ``system``, ``history``.

    Exchanges of the history, ``[[instruction, output], …]``, come before, and are learned too.
    """
    where, values = row.where, row.values
    instruction = string(values, "instruction", where=where)
    given = optional_string(values, "input", where=where)
    output = string(values, "output", where=where, filled=True)
    prompt = f"{instruction}\n\n{given}" if given else instruction
    last = (Turn("user", prompt), Turn("assistant", output))
    return Example((*_system(row), *_history(row), *last), where=where)


def plain_text(row: RawRow) -> Example:
    """Return a row of ``text``."""
    text = Turn("text", string(row.values, "text", where=row.where, filled=True))
    return Example((text,), where=row.where)


def turns(written: object, key: str, *, where: str) -> tuple[Turn, ...]:
    """Return a list of turns, with ``role`` and ``content`` or ``from`` and ``value``.

    A turn with ``weight: 0`` or ``train: false`` is read, but not learned.

    Args:
        written: what the row has under ``key``.
        key: for the error message.
        where: place for the error message.

    Raises:
        RowError: it is no such list, or holds what cannot be learned from.
    """
    if not isinstance(written, list) or not all(isinstance(turn, dict) for turn in written):
        raise RowError(where, f'{key} is no list of turns [{{"role": "…", "content": "…"}}, …].')
    return tuple(
        _turn(message, where=f"{where}, turn {number}")
        for number, message in enumerate(written, start=1)
    )


def only_read(turn: Turn) -> Turn:
    """Return a turn that is not learned, whoever speaks."""
    return Turn(turn.role, turn.content, learned=turn.role != "assistant")


def _turn(message: Mapping[str, Any], *, where: str) -> Turn:
    written = message.keys() >= {"from", "value"}
    speaker, content = ("from", "value") if written else ("role", "content")
    name = message.get(speaker)
    name = name.lower() if isinstance(name, str) else ""
    if name in _TOOLS:
        raise RowError(
            where, f"the {speaker} is {name}, but tools are not supported. Remove the row."
        )
    if name not in _ROLES:
        raise RowError(where, f"the {speaker} is none of {', '.join(_ROLES)}.")
    for key in _NOT_KEPT:
        if message.get(key):
            raise RowError(where, f"{key} would be lost: put it into {content}, or remove the row.")
    role, learned = _ROLES[name], _is_learned(message, where=where)
    text = string(message, content, where=where, filled=role == "assistant" and learned)
    return Turn(role, text, learned=learned or role != "assistant")


def _is_learned(message: Mapping[str, Any], *, where: str) -> bool:
    weight, train = message.get("weight"), message.get("train")
    if weight not in (None, 0, 1) or train not in (None, True, False):
        raise RowError(where, "weight is 0 or 1, and train is true or false. Correct or remove it.")
    return weight != 0 and train is not False


def _conversation(row: RawRow, said: Sequence[Turn]) -> Example:
    if not any(turn.role == "assistant" and turn.learned for turn in said):
        raise RowError(
            row.where,
            "there is no assistant turn, so there is nothing to learn. Add one or remove the row.",
        )
    if row.values.get("tools"):
        raise RowError(row.where, "tools are not supported. Remove the row, or the key.")
    return Example(tuple(said), where=row.where)


def _system(row: RawRow) -> tuple[Turn, ...]:
    text = optional_string(row.values, "system", where=row.where)
    return (Turn("system", text),) if text else ()


def _history(row: RawRow) -> tuple[Turn, ...]:
    """Return the exchanges before an alpaca row's own."""
    history = row.values.get("history") or []
    pairs = history if isinstance(history, list) else [None]
    if not all(isinstance(p, list) and len(p) == 2 for p in pairs):
        raise RowError(row.where, 'history is no list of exchanges [["…", "…"], …].')
    said: list[Turn] = []
    for number, (asked, answered) in enumerate(pairs, start=1):
        values = {"instruction": asked, "output": answered}
        where = f"{row.where}, exchange {number}"
        said.append(Turn("user", string(values, "instruction", where=where)))
        said.append(Turn("assistant", string(values, "output", where=where, filled=True)))
    return tuple(said)


def _refuse_judgement(row: RawRow) -> None:
    """Refuse a completion that somebody has judged: whether it is good is not to be ignored."""
    if isinstance(row.values.get("label"), bool):
        raise RowError(
            row.where,
            "label says whether the completion is a good one, which no objective learns. Keep the "
            "rows with good ones, and remove the key.",
        )
