"""Datasets as typed examples, whichever of the four row formats they were written in.

Errors name file, line and key but never a value: the values are private data.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from fedlora.data.examples import Example, Labelled, Role, Row, Turn
from fedlora.data.files import RawRow, read_files
from fedlora.data.standard_library import explained_functions
from fedlora.errors import DataError
from fedlora.sections import AT_SITE, STANDARD_LIBRARY, Dataset

RowType = Literal["messages", "prompt-completion", "alpaca", "text-label", "text"]

_CHAT_ROLES: Mapping[str, Role] = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
}
_MOST_KEYS_NAMED = 12


@dataclass(frozen=True, slots=True)
class Rows:
    """One dataset."""

    type: RowType
    """Format of all its rows."""
    examples: tuple[Row, ...]
    """At least one."""
    source: str
    """Where it came from: the path that the recipe names."""


def read_dataset(dataset: Dataset) -> Rows:
    """Read one dataset of a recipe, in an order that depends on the data alone.

    Raises:
        DataError: names file and line, what was expected and what to do.
    """
    if dataset.path == AT_SITE:
        raise DataError(
            f"datasets: the data of site {dataset.site} is named by the site itself, in a "
            "deployment. To simulate, or to train here, give the dataset a path."
        )
    if dataset.path == STANDARD_LIBRARY:
        return _standard_library(dataset.packages)
    rows = tuple(read_files(Path(dataset.path)))
    types = [_detect(row) if dataset.type == "auto" else dataset.type for row in rows]
    for row, row_type in zip(rows, types, strict=True):
        if row_type != types[0]:
            raise DataError(
                f"{row.where}: this row has the format {row_type}, the rows before it have "
                f"{types[0]}. Give each format a dataset of its own, or set datasets[].type."
            )
    examples = tuple(map(_FORMATS[types[0]].row, rows))
    return Rows(type=types[0], examples=examples, source=dataset.path)


def _standard_library(packages: tuple[str, ...]) -> Rows:
    examples = tuple(
        Example(
            (
                Turn("user", f"What does this function do?\n\n{function.call}"),
                Turn("assistant", function.first_paragraph),
            ),
            where=f"{STANDARD_LIBRARY}, {function.module}.{function.name}",
        )
        for function in explained_functions(packages)
    )
    if not examples:
        wanted = f"the packages {', '.join(packages)}" if packages else "any source"
        raise DataError(
            f"{STANDARD_LIBRARY}: this Python has no documentation of {wanted}. "
            "Name other packages, or use a Python that has its standard library as .py files."
        )
    return Rows(type="messages", examples=examples, source=STANDARD_LIBRARY)


def _detect(row: RawRow) -> RowType:
    for name, row_format in _FORMATS.items():
        if row.values.keys() >= row_format.keys:
            return name
    shapes = "; ".join(f"{name}: {row_format.shape}" for name, row_format in _FORMATS.items())
    raise DataError(
        f"{row.where}: unknown format with the keys {_named(row.values)}. "
        f"Use one of these. {shapes}."
    )


def _named(keys: Iterable[str]) -> str:
    """List keys, but not those that look like data: a CSV without a header has data for keys."""
    names = list(keys)
    shown = [name for name in names if re.fullmatch(r"[A-Za-z_][\w-]{0,30}", name)]
    shown = shown[:_MOST_KEYS_NAMED]
    more = len(names) - len(shown)
    return ", ".join([*shown, *([f"{more} not shown"] if more else [])]) or "(none)"


def _messages(row: RawRow) -> tuple[Turn, ...]:
    messages = row.values.get("messages")
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise DataError(f"{row.where}: messages is no list of turns {_FORMATS['messages'].shape}.")
    turns = tuple(
        _turn(message, where=f"{row.where}, turn {number}")
        for number, message in enumerate(messages, start=1)
    )
    if not any(turn.role == "assistant" for turn in turns):
        raise DataError(
            f"{row.where}: there is no assistant turn, so there is nothing to learn. "
            "Add one or remove the row."
        )
    return turns


def _turn(message: Mapping[str, Any], *, where: str) -> Turn:
    name = message.get("role")
    role = _CHAT_ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        raise DataError(f"{where}: the role is none of {', '.join(_CHAT_ROLES)}.")
    return Turn(role, _string(message, "content", where=where, filled=role == "assistant"))


def _prompt_completion(row: RawRow) -> tuple[Turn, ...]:
    prompt = _string(row.values, "prompt", where=row.where)
    completion = _string(row.values, "completion", where=row.where, filled=True)
    return Turn("user", prompt), Turn("assistant", completion)


def _alpaca(row: RawRow) -> tuple[Turn, ...]:
    instruction = _string(row.values, "instruction", where=row.where)
    given = _string({"input": "", **row.values}, "input", where=row.where)
    output = _string(row.values, "output", where=row.where, filled=True)
    prompt = f"{instruction}\n\n{given}" if given.strip() else instruction
    return Turn("user", prompt), Turn("assistant", output)


def _plain_text(row: RawRow) -> tuple[Turn, ...]:
    return (Turn("text", _string(row.values, "text", where=row.where, filled=True)),)


def _text_label(row: RawRow) -> Labelled:
    """Return a text with its label: a name, or a whole number, which is written out."""
    label = row.values.get("label")
    if isinstance(label, bool) or not isinstance(label, str | int):
        raise DataError(f"{row.where}: label must be a name or a whole number. Correct the row.")
    text = _string(row.values, "text", where=row.where, filled=True)
    return Labelled(text, str(label).strip(), where=row.where)


def _of_turns(turns: Callable[[RawRow], tuple[Turn, ...]]) -> Callable[[RawRow], Row]:
    return lambda row: Example(turns(row), where=row.where)


def _string(values: Mapping[str, Any], key: str, *, where: str, filled: bool = False) -> str:
    if key not in values:
        raise DataError(
            f"{where}: the key {key} is missing; there are {_named(values)}. "
            "Add it, or correct datasets[].type."
        )
    value = values[key]
    if not isinstance(value, str):
        raise DataError(f"{where}: {key} must be a string.")
    if filled and not value.strip():
        raise DataError(f"{where}: {key} is empty. Fill it or remove the row.")
    if re.search("[\ud800-\udfff]", value):
        raise DataError(f"{where}: {key} holds half of a surrogate pair, which is no text.")
    return value


class _Format(NamedTuple):
    keys: frozenset[str]
    """Keys that mark the format."""
    shape: str
    row: Callable[[RawRow], Row]


# In the order of detection: alpaca sets often carry a rendered text as well.
_FORMATS: Mapping[RowType, _Format] = {
    "messages": _Format(
        frozenset({"messages"}),
        '{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}',
        _of_turns(_messages),
    ),
    "prompt-completion": _Format(
        frozenset({"prompt", "completion"}),
        '{"prompt": "…", "completion": "…"}',
        _of_turns(_prompt_completion),
    ),
    "alpaca": _Format(
        frozenset({"instruction", "output"}),
        '{"instruction": "…", "input": "… (optional)", "output": "…"}',
        _of_turns(_alpaca),
    ),
    "text-label": _Format(frozenset({"text", "label"}), '{"text": "…", "label": "…"}', _text_label),
    "text": _Format(frozenset({"text"}), '{"text": "…"}', _of_turns(_plain_text)),
}
