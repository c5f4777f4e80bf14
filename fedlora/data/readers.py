"""Files of each kind as rows: a mapping of keys to values each, with the place it came from.

Errors name file, line and key but never a value: the values are private data.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from fedlora.errors import DataError, RowError

_LARGEST_CELL = 2**31 - 1
"""Characters; by itself Python's reader takes 131,072 for an error in the quotes."""
_PASSAGE = 1000
"""Characters up to which the paragraphs of a text file are joined: about 250 to 400 tokens."""


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row before its format is known."""

    where: str
    """Its place, such as ``notes.jsonl, line 3``."""
    values: Mapping[str, Any]


Read: TypeAlias = Iterator[RawRow | RowError]
"""Rows, and in the place of each that cannot be read what is wrong with it."""


def read_file(file: Path) -> Read:
    """Yield the rows of a file, of whose suffix ``READERS`` knows how.

    A text file gives one row ``{"text": …}`` for each passage, which is as many whole paragraphs as
    1,000 characters hold (a longer paragraph stays whole).

    Raises:
        DataError: it cannot be read, or it holds no rows.
    """
    rows = READERS[file.suffix.lower()](file)
    first = next(rows, None)
    if first is None:
        raise DataError(f"{file}: the file holds no rows. Put rows into it, or leave it out.")
    yield first
    yield from rows


def unreadable(path: Path, error: OSError) -> DataError:
    """Return what to say of a path that the operating system refuses."""
    return DataError(
        f"{path}: this cannot be read ({error.strerror}). Check the path and its permissions."
    )


def _text(file: Path) -> str:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise unreadable(file, error) from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{file}, line {line}: this is not UTF-8 text. Convert the file to UTF-8."
        ) from None
    if not text.strip():
        raise DataError(f"{file}: the file is empty. Put rows into it, or leave it out.")
    return text


def _json_lines(file: Path) -> Read:
    # Not splitlines(): JSON strings may hold U+2028 and its like as they are.
    for number, line in enumerate(_text(file).split("\n"), start=1):
        if line.strip():
            where = f"{file}, line {number}"
            try:
                row = _parse(line, where=where)
            except RowError as error:
                yield error
            else:
                yield _object(row, where=where)


def _json(file: Path) -> Read:
    rows = _parse(_text(file), where=str(file))
    if not isinstance(rows, list):
        raise DataError(
            f"{file}: expected a list of rows, [{{…}}, {{…}}]. "
            "One row a line belongs into a file that ends in .jsonl."
        )
    for number, row in enumerate(rows, start=1):
        yield _object(row, where=f"{file}, row {number}")


def _parse(text: str, *, where: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f", line {error.lineno}" if "\n" in text.strip() else ""
        problem = f"{error.msg}, column {error.colno}"
        raise RowError(
            f"{where}{line}",
            f"this is not valid JSON ({problem}). Correct or remove it; a file "
            "with one row a line ends in .jsonl, a file with one list of rows in .json.",
        ) from None
    except (ValueError, RecursionError):
        raise RowError(where, "a number or a nesting in this JSON is too large.") from None


def _object(row: object, *, where: str) -> RawRow | RowError:
    if isinstance(row, dict):
        return RawRow(where, row)
    return RowError(where, f"expected an object such as {{…}}, not {_json_type(row)}.")


def _json_type(value: object) -> str:
    names = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _csv(file: Path) -> Read:
    csv.field_size_limit(_LARGEST_CELL)
    # newline="": the reader itself tells line ends inside quotes from those between rows.
    text = io.StringIO(_text(file), newline="")
    reader = csv.reader(text, strict=True, skipinitialspace=True)  # else a, "b" has quotes in it
    try:
        header = [name.strip() for name in next((cells for cells in reader if cells), [])]
        if len(set(header)) < len(header):
            raise DataError(f"{file}, line {reader.line_num}: two columns have the same name.")
        for cells in reader:
            where = f"{file}, line {reader.line_num}"
            if cells and len(cells) != len(header):
                yield RowError(
                    where,
                    f"expected {len(header)} columns as in the header, found {len(cells)}."
                    " Text that holds commas or line ends needs quotes.",
                )
            elif cells:
                yield RawRow(where, dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise DataError(
            f"{file}, line {reader.line_num}: this is not valid CSV ({error}). "
            "Put text into double quotes, or write the rows as .jsonl."
        ) from None


def _parquet(file: Path) -> Read:
    try:
        with pq.ParquetFile(file) as table:
            names = table.schema_arrow.names
            if len(set(names)) < len(names):
                raise DataError(f"{file}: two columns have the same name.")
            number = 0
            for part in table.iter_batches():
                for row in part.to_pylist():
                    number += 1
                    yield RawRow(f"{file}, row {number}", row)
    except (pa.ArrowException, ValueError, OverflowError, OSError) as error:
        raise DataError(  # without the error's text, which may quote values
            f"{file}: this cannot be read as Parquet ({type(error).__name__}). Write the file anew."
        ) from None


def _passages(file: Path) -> Read:
    passage, number = "", 1
    text = _text(file).replace("\r\n", "\n")
    for paragraph in filter(None, map(str.strip, re.split(r"\n\s*\n", text))):
        if passage and len(passage) + 2 + len(paragraph) > _PASSAGE:
            yield RawRow(f"{file}, passage {number}", {"text": passage})
            passage, number = "", number + 1
        passage = f"{passage}\n\n{paragraph}" if passage else paragraph
    yield RawRow(f"{file}, passage {number}", {"text": passage})


READERS: Mapping[str, Callable[[Path], Read]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
    ".txt": _passages,
    ".md": _passages,
}
"""How to read a file, by its suffix."""
PACKED = frozenset({".txt", ".md"})
"""Suffixes of files whose rows are made of several paragraphs."""
