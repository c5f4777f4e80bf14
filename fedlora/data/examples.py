"""Rows of datasets as values, one kind for each way to learn from them.

Rows that say the same are equal wherever they stand.
"""

import json
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Role = Literal["system", "user", "assistant", "text"]


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side says."""

    role: Role
    """``text`` for text that is no conversation; it stands alone then."""
    content: str
    learned: bool = True
    """Whether what an assistant says is learned, not only read."""


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation with at least one assistant turn to learn, or one turn of plain text."""

    turns: tuple[Turn, ...]
    where: str = field(default="", compare=False)
    """Place of the row for error messages."""

    @property
    def content(self) -> str:
        """What the row says, as canonical JSON."""
        return json.dumps(_plain(self.turns))


@dataclass(frozen=True, slots=True)
class Preference:
    """A prompt with an answer that is preferred, and one that is not."""

    prompt: tuple[Turn, ...]
    """None of them is the assistant's last."""
    chosen: Turn
    """The assistant's, as is ``rejected``."""
    rejected: Turn
    where: str = field(default="", compare=False)
    """Place of the row for error messages."""

    @property
    def content(self) -> str:
        """What the row says, as canonical JSON."""
        return json.dumps(
            {
                "prompt": _plain(self.prompt),
                "chosen": self.chosen.content,
                "rejected": self.rejected.content,
            }
        )


@dataclass(frozen=True, slots=True)
class Labelled:
    """A text and the class that it is of."""

    text: str
    label: str
    where: str = field(default="", compare=False)
    """Place of the row for error messages."""

    @property
    def content(self) -> str:
        """What the row says, as canonical JSON."""
        return json.dumps({"text": self.text, "label": self.label})


Row: TypeAlias = Example | Preference | Labelled


def _plain(turns: tuple[Turn, ...]) -> list[tuple[str, ...]]:
    return [(t.role, t.content) if t.learned else (t.role, t.content, "read") for t in turns]
