"""What a gate and its aggregator say to each other of the log: heads, and receipts of them."""

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self

from fedlora import atomic
from fedlora.chained_file import Head
from fedlora.sections import NAME
from fedlora.signing import PublicKey, Signer, canonical

_TEXTS = {
    "hash": "[0-9a-f]{64}",
    "site": NAME,
    "time": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00",
}
_SIGNATURE_BYTES = 64


@dataclass(frozen=True, kw_only=True)
class Statement(Head):
    """A head of a site's log, in somebody's word.

    Signed is canonical JSON of all fields but ``signature``, with the kind as ``statement``.
    """

    kind: ClassVar[str]
    site: str
    signature: bytes
    """64 bytes."""

    @classmethod
    def sign(cls, signer: Signer, **facts: Any) -> Self:  # noqa: ANN401 - as the fields
        """Return a statement with its signature."""
        return cls(**facts, signature=signer.sign(_message(cls.kind, facts)))

    @classmethod
    def read(cls, facts: Mapping[str, object]) -> Self:
        """Return the statement that ``facts`` gave.

        Raises:
            ValueError: it is none; whether it is signed rightly is not looked at.
        """
        names = {field.name for field in fields(cls)}
        sound = facts.keys() == names
        for name, value in facts.items():
            match value:
                case bool():
                    sound = False
                case int():
                    sound &= name == "count" and 0 <= value < 2**63
                case str():
                    sound &= name in _TEXTS and bool(re.fullmatch(_TEXTS[name], value))
                case bytes():
                    sound &= name == "signature" and len(value) == _SIGNATURE_BYTES
                case _:
                    sound = False
        if not sound:
            raise ValueError(f"{', '.join(sorted(names))} were expected, and nothing else")
        return cls(**facts)  # type: ignore[arg-type] # each was looked at

    def facts(self) -> dict[str, Any]:
        """Return all fields by name."""
        return asdict(self)

    def signed_by(self, key: PublicKey) -> bool:
        """Whether this is the word of whoever has that key."""
        facts = self.facts()
        del facts["signature"]
        return key.signed(_message(self.kind, facts), self.signature)

    def to_json(self) -> bytes:
        """Return canonical JSON, the signature in base64."""
        shown = {"signature": base64.b64encode(self.signature).decode()}
        return canonical(self.facts() | shown) + b"\n"

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """Read what ``to_json`` wrote.

        Raises:
            ValueError: it is something else, or in another spelling.
        """
        try:
            facts = json.loads(text)
            facts["signature"] = base64.b64decode(facts["signature"], validate=True)
        except (TypeError, KeyError, RecursionError) as error:
            raise ValueError(repr(error)) from None
        statement = cls.read(facts)
        if statement.to_json() != text:
            raise ValueError("canonical JSON was expected")
        return statement

    def keep(self, path: Path) -> None:
        """Write it to a small file.

        Raises:
            StorageError: it cannot be written.
        """
        atomic.write_file(path, self.to_json())

    @classmethod
    def kept(cls, path: Path) -> Self:
        """Read what ``keep`` wrote; errors as ``Head.kept``."""
        return cls.from_json(path.read_bytes())


@dataclass(frozen=True, kw_only=True)
class SignedHead(Statement):
    """How far a site's log has come at a time, in its gate's word."""

    kind = "head"
    time: str
    """UTC, ISO 8601 with milliseconds, by the site's clock."""


@dataclass(frozen=True, kw_only=True)
class Receipt(Statement):
    """How far an aggregator has seen a site's log come, in the aggregator's word."""

    kind = "receipt"


def _message(kind: str, facts: Mapping[str, Any]) -> bytes:
    return canonical({**facts, "statement": kind})
