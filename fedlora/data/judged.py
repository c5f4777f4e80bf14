"""Rows that somebody has judged: pairs of answers, and texts with labels."""

from fedlora.data.conversations import only_read, turns
from fedlora.data.examples import Labelled, Preference, Turn
from fedlora.data.readers import RawRow
from fedlora.data.values import optional_string, string
from fedlora.errors import RowError

_Turns = tuple[Turn, ...]


def preference(row: RawRow) -> Preference:
    """Return a prompt with the answer that is preferred and the one that is not.

    ``chosen`` and ``rejected`` are texts beside a ``prompt`` that is a text, or lists of turns,
    each an answer beside a ``prompt`` that is such a list, or a whole conversation: its prompt is
    what both begin with, and a ``prompt`` that is a text is that again (as TRL's *dataset formats*
    describe). ``system`` may stand beside texts.

    Raises:
        RowError: it is none of these, or the two differ in more than the last turn, or in nothing.
    """
    prompt, chosen, rejected = _written(row)
    for key, answer in (("chosen", chosen), ("rejected", rejected)):
        if len(answer) != 1 or answer[0].role != "assistant":
            raise RowError(
                row.where,
                f"{key} is not one turn of the assistant's after what both share. Let chosen and "
                "rejected differ in the last turn alone.",
            )
    if not prompt or prompt[-1].role == "assistant":
        raise RowError(
            row.where, "there is no prompt that the two answer. Add one, or remove the row."
        )
    if chosen == rejected:
        raise RowError(
            row.where, "chosen and rejected are the same, so neither is better. Remove the row."
        )
    return Preference(tuple(map(only_read, prompt)), chosen[0], rejected[0], where=row.where)


def text_label(row: RawRow) -> Labelled:
    """Return a text with its label: a name, or a whole number, which is written out.

    Raises:
        RowError: it is neither, or there is no text.
    """
    label = row.values.get("label")
    if isinstance(label, float) and label.is_integer():  # as tables write whole numbers
        label = int(label)
    if isinstance(label, bool) or not isinstance(label, (str, int)) or not str(label).strip():
        raise RowError(row.where, "label must be a name or a whole number. Correct the row.")
    if isinstance(label, int) and label < 0:
        raise RowError(row.where, "label is negative, which means none. Remove the row.")
    text = string(row.values, "text", where=row.where, filled=True)
    return Labelled(text, str(label).strip(), where=row.where)


def _written(row: RawRow) -> tuple[_Turns, _Turns, _Turns]:
    """Return prompt, chosen and rejected turns as they are written, checked no further."""
    where, values = row.where, row.values
    if not isinstance(values.get("chosen"), list):
        system = optional_string(values, "system", where=where)
        asked = Turn("user", string(values, "prompt", where=where))
        prompt: _Turns = (Turn("system", system), asked) if system else (asked,)
        chosen, rejected = (
            (Turn("assistant", string(values, key, where=where, filled=True)),)
            for key in ("chosen", "rejected")
        )
        return prompt, chosen, rejected
    one, other = (turns(values.get(key), key, where=where) for key in ("chosen", "rejected"))
    if isinstance(values.get("prompt"), list):
        return turns(values["prompt"], "prompt", where=where), one, other
    most = max(0, min(len(one), len(other)) - 1)  # the last of either is an answer
    shared = next((place for place in range(most) if one[place] != other[place]), most)
    return one[:shared], one[shared:], other[shared:]
