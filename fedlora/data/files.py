"""Rows as they stand in files: each a mapping of keys to values, with the place it came from.

Errors name file, line and key but never a value: the values are private data.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedlora.errors import DataError

_PASSAGE = 1000
"""Characters up to which the paragraphs of a text file are joined: about 250 to 400 tokens."""


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row before its format is known."""

    where: str
    """Its place, such as ``notes.jsonl, line 3``."""
    values: Mapping[str, Any]


def read_files(path: Path) -> Iterator[RawRow]:
    """Yield the rows of a file, or of all files below a folder in sorted order.

    In a folder hidden files and files with other suffixes are passed over. A text file gives one
    row ``{"text": …}`` for each passage, which is as many whole paragraphs as 1,000 characters
    hold (a longer paragraph stays whole).

    Raises:
        DataError: nothing is there, it cannot be read, or it holds no rows.
    """
    for file in _files(path):
        read = _READERS.get(file.suffix.lower())
        if read is None:
            raise DataError(f"{file}: this is none of the files that can be read ({_SUFFIXES}).")
        text = _text(file)
        if not text.strip():
            raise DataError(f"{file}: the file is empty. Put rows into it, or leave it out.")
        rows = iter(read(file, text))
        first = next(rows, None)
        if first is None:
            raise DataError(f"{file}: the file holds no rows. Put rows into it, or leave it out.")
        yield first
        yield from rows


def _files(path: Path) -> list[Path]:
    try:
        if not path.exists():
            began = "" if path.is_absolute() else f" It was looked for from {Path.cwd()}."
            raise DataError(
                f"{path}: there is no such file or folder.{began} Correct datasets[].path in the "
                "recipe; at a site, data[].path in its site.yaml."
            )
        files = sorted(filter(_is_listed, path.rglob("*"))) if path.is_dir() else [path]
    except OSError as error:
        raise _unreadable(path, error) from None
    files = [file for file in files if not _is_hidden(file.relative_to(path))]
    if not files:
        raise DataError(
            f"{path}: the folder holds none of the files that can be read: {_SUFFIXES}."
        )
    return files


def _is_listed(file: Path) -> bool:
    return file.suffix.lower() in _READERS and file.is_file()


def _is_hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: this cannot be read ({error.strerror}). Check its permissions.")


def _text(file: Path) -> str:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise _unreadable(file, error) from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{file}, line {line}: this is not UTF-8 text. Convert the file to UTF-8."
        ) from None


def _json_lines(file: Path, text: str) -> Iterator[RawRow]:
    # Not splitlines(): JSON strings may hold U+2028 and its like as they are.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{file}, line {number}"
            yield RawRow(where, _object(_parse(line, where=where), where=where))


def _json(file: Path, text: str) -> Iterator[RawRow]:
    rows = _parse(text, where=str(file))
    if not isinstance(rows, list):
        raise DataError(
            f"{file}: expected a list of rows, [{{…}}, {{…}}]. "
            "One row a line belongs into a file that ends in .jsonl."
        )
    for number, row in enumerate(rows, start=1):
        where = f"{file}, row {number}"
        yield RawRow(where, _object(row, where=where))


def _parse(text: str, *, where: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f", line {error.lineno}" if "\n" in text.strip() else ""
        problem = f"{error.msg}, column {error.colno}"
        raise DataError(
            f"{where}{line}: this is not valid JSON ({problem}). Correct or remove it; a file "
            "with one row a line ends in .jsonl, a file with one list of rows in .json."
        ) from None
    except (ValueError, RecursionError):
        raise DataError(f"{where}: a number or a nesting in this JSON is too large.") from None


def _object(row: object, *, where: str) -> Mapping[str, Any]:
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected an object such as {{…}}, not {_json_type(row)}.")
    return row


def _json_type(value: object) -> str:
    names = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _csv(file: Path, text: str) -> Iterator[RawRow]:
    # newline="": the reader itself tells line ends inside quotes from those between rows.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip() for name in next((cells for cells in reader if cells), [])]
        if len(set(header)) < len(header):
            raise DataError(f"{file}, line {reader.line_num}: two columns have the same name.")
        for cells in reader:
            where = f"{file}, line {reader.line_num}"
            if cells and len(cells) != len(header):
                raise DataError(
                    f"{where}: expected {len(header)} columns as in the header, found {len(cells)}."
                    " Text that holds commas or line ends needs quotes."
                )
            if cells:
                yield RawRow(where, dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise DataError(
            f"{file}, line {reader.line_num}: this is not valid CSV ({error}). "
            "Put text into double quotes, or write the rows as .jsonl."
        ) from None


def _passages(file: Path, text: str) -> Iterator[RawRow]:
    passage = ""
    number = 1
    for paragraph in filter(None, map(str.strip, re.split(r"\n\s*\n", text.replace("\r\n", "\n")))):
        if passage and len(passage) + 2 + len(paragraph) > _PASSAGE:
            yield RawRow(f"{file}, passage {number}", {"text": passage})
            passage, number = "", number + 1
        passage = f"{passage}\n\n{paragraph}" if passage else paragraph
    yield RawRow(f"{file}, passage {number}", {"text": passage})


_READERS: Mapping[str, Callable[[Path, str], Iterator[RawRow]]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".txt": _passages,
    ".md": _passages,
}
PACKED = frozenset({".txt", ".md"})
"""Suffixes of files whose rows are made of several paragraphs."""
_SUFFIXES = ", ".join(_READERS)
