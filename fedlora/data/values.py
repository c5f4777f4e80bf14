"""Single values of a row, checked; errors name place and key, never the value."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from fedlora.errors import RowError

_MOST_KEYS_NAMED = 12


def string(values: Mapping[str, Any], key: str, *, where: str, filled: bool = False) -> str:
    """Return a text.

    Args:
        values: of a row or a turn.
        key: the text's.
        where: place for the error message.
        filled: refuse white space alone.

    Raises:
        RowError: it is missing, is no text, or has nothing in it.
    """
    if key not in values:
        raise RowError(
            where,
            f"the key {key} is missing; there are {named(values)}. "
            "Add it, or correct datasets[].type.",
        )
    value = values[key]
    if not isinstance(value, str):
        raise RowError(where, f"{key} must be a string.")
    if filled and not value.strip():
        raise RowError(where, f"{key} is empty. Fill it or remove the row.")
    if re.search("[\ud800-\udfff]", value):
        raise RowError(where, f"{key} holds half of a surrogate pair, which is no text.")
    return value


def optional_string(values: Mapping[str, Any], key: str, *, where: str) -> str:
    """Return a text, or an empty one where it is missing, null or white space.

    Raises:
        RowError: it is no text.
    """
    if values.get(key) is None:
        return ""
    text = string(values, key, where=where)
    return text if text.strip() else ""


def named(keys: Iterable[str]) -> str:
    """List keys, but not those that look like data: a CSV without a header has data for keys."""
    names = list(keys)
    shown = [name for name in names if re.fullmatch(r"[A-Za-z_][\w-]{0,30}", name)]
    shown = shown[:_MOST_KEYS_NAMED]
    more = len(names) - len(shown)
    return ", ".join([*shown, *([f"{more} not shown"] if more else [])]) or "(none)"
