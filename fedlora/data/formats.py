"""Datasets as typed rows, whichever of the row formats they were written in.

Errors name file, line and key but never a value: the values are private data.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from fedlora.data import conversations, judged
from fedlora.data.examples import Example, Labelled, Preference, Row, Turn
from fedlora.data.files import files_of
from fedlora.data.readers import RawRow, read_file
from fedlora.data.standard_library import explained_functions
from fedlora.data.values import named
from fedlora.errors import DataError, RowError
from fedlora.recipe import Recipe
from fedlora.sections import AT_SITE, STANDARD_LIBRARY, Dataset, RowType

TAKEN: Mapping[str, type[Row]] = {
    "sft": Example,
    "dpo": Preference,
    "classification": Labelled,
}
"""The kind of rows that an objective learns from."""


@dataclass(frozen=True, slots=True)
class Rows:
    """One dataset."""

    type: RowType
    """Format of all its rows."""
    examples: tuple[Row, ...]
    """At least one, and all of one kind."""
    source: str
    """Where it came from: the path that the recipe names."""


OnProblem: TypeAlias = Callable[[RowError], None]
"""Told of a row that cannot be learned from, which is then left out."""


def refuse(error: RowError) -> None:
    """End the reading with the first row that cannot be learned from."""
    raise error


def leave_out(error: RowError) -> None:
    """Say in the site's own log what is left out."""
    logging.getLogger(__name__).warning("%s The row is left out.", error)


def on_problem_of(recipe: Recipe) -> OnProblem:
    """Return what becomes of rows that cannot be learned from.

    Under ``privacy.unit: example`` each is left out by itself: a run that ends tells of it.
    """
    return leave_out if recipe.privacy.unit == "example" else refuse


def read_dataset(
    dataset: Dataset,
    *,
    objective: str | None = None,
    on_problem: OnProblem = refuse,
) -> Rows:
    """Read one dataset of a recipe, in an order that depends on the data alone.

    Args:
        dataset: where it is.
        objective: what is to learn from it; if none is named, rows may be of any kind.
        on_problem: told of each row that cannot be learned from, which is then left out. By default
            nothing is left out: the first ends the reading.

    Raises:
        DataError: it cannot be read, no row can be learned from, or the objective does not take its
            format; it names file and line, what was expected and what to do.
    """
    if dataset.path == AT_SITE:
        raise DataError(
            f"datasets: the data of site {dataset.site} is named by the site itself, in a "
            "deployment. To simulate, or to train here, give the dataset a path."
        )
    if dataset.path == STANDARD_LIBRARY:
        rows = _standard_library(dataset.packages)
        _require_taken(rows.type, RawRow(STANDARD_LIBRARY, {}), objective)
        return rows
    expected: RowType | None = None
    examples: list[Row] = []
    for raw in _readable(dataset, on_problem):
        try:
            found = _detect(raw) if dataset.type == "auto" else dataset.type
            if expected is None:
                _require_taken(found, raw, objective)
                expected = found
            _require_same(found, expected, raw)
            examples.append(_FORMATS[found].row(raw))
        except RowError as error:
            on_problem(error)
    if expected is None or not examples:
        raise DataError(f"{dataset.path}: no row of it can be learned from.")
    return Rows(type=expected, examples=tuple(examples), source=dataset.path)


def _readable(dataset: Dataset, on_problem: OnProblem) -> Iterator[RawRow]:
    for file in files_of(dataset):
        for row in read_file(file):
            if isinstance(row, RowError):
                on_problem(row)
            else:
                yield row


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
    raise RowError(
        row.where,
        f"unknown format with the keys {named(row.values)}. Use one of these. {shapes}.",
    )


def _require_same(found: RowType, expected: RowType, row: RawRow) -> None:
    if found != expected:
        raise RowError(
            row.where,
            f"this row has the format {found}, the rows before it have {expected}. Give each "
            "format a dataset of its own, or set datasets[].type.",
        )


def _require_taken(found: RowType, row: RawRow, objective: str | None) -> None:
    """Refuse a format that the objective cannot learn from; the same columns may hold another."""
    if objective is None or _FORMATS[found].kind is TAKEN[objective]:
        return
    taken = [name for name, each in _FORMATS.items() if each.kind is TAKEN[objective]]
    other = next(name for name, kind in TAKEN.items() if kind is _FORMATS[found].kind)
    also = [name for name in taken if row.values.keys() >= _FORMATS[name].keys]
    instead = f", or datasets[].type: {also[0]} to learn that alone" if also else ""
    raise DataError(
        f"{row.where}: this row has the format {found}, but objective: {objective} learns from "
        f"{', '.join(taken)}. Set objective: {other}{instead}; or name other data."
    )


class _Format(NamedTuple):
    keys: frozenset[str]
    """Keys that mark the format."""
    shape: str
    kind: type[Row]
    row: Callable[[RawRow], Row]


# In the order of detection: sets of pairs often carry a conversation as well, alpaca sets a
# rendered text, and labelled sets a text.
_FORMATS: Mapping[RowType, _Format] = {
    "preference": _Format(
        frozenset({"chosen", "rejected"}),
        '{"prompt": "…", "chosen": "…", "rejected": "…"}',
        Preference,
        judged.preference,
    ),
    "messages": _Format(
        frozenset({"messages"}),
        '{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}',
        Example,
        conversations.messages,
    ),
    "sharegpt": _Format(
        frozenset({"conversations"}),
        '{"conversations": [{"from": "human", "value": "…"}, {"from": "gpt", "value": "…"}]}',
        Example,
        conversations.sharegpt,
    ),
    "prompt-completion": _Format(
        frozenset({"prompt", "completion"}),
        '{"prompt": "…", "completion": "…"}',
        Example,
        conversations.prompt_completion,
    ),
    "alpaca": _Format(
        frozenset({"instruction", "output"}),
        '{"instruction": "…", "input": "… (optional)", "output": "…"}',
        Example,
        conversations.alpaca,
    ),
    "text-label": _Format(
        frozenset({"text", "label"}),
        '{"text": "…", "label": "…"}',
        Labelled,
        judged.text_label,
    ),
    "text": _Format(frozenset({"text"}), '{"text": "…"}', Example, conversations.plain_text),
}
