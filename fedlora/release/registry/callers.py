"""Who may call a registry: a small YAML file, in which no token can be read.

::

    callers:
    - name: ci                       # known by a token
      scope: publish
      since: '2026-01-31T12:00:00Z'
      token: 9f86d081…               # its SHA-256
    - name: engine-1.example.org     # known by a client certificate with this name
      scope: read
      since: '2026-01-31T12:00:00Z'

A token has 256 random bits, so that its plain SHA-256 gives nothing away.
"""

import hashlib
import hmac
import secrets
from collections.abc import Callable, Collection, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError

from fedlora import atomic
from fedlora.document import read_section, write_yaml
from fedlora.errors import ReleaseError
from fedlora.release.manifest import Time, stamp
from fedlora.sections import Digest, Name, Section

Scope = Literal["read", "publish"]
"""What a caller may do; ``publish`` includes ``read``."""

_TOKEN_BYTES = 32
_PREFIX = "fedlora_"
"""So that those who look for leaked secrets know one."""


class Caller(Section):
    """Who may call."""

    name: Name
    """What the log calls it; without a token, the name in its certificate."""
    scope: Scope
    since: Time
    token: Digest | None = None
    """SHA-256 of the token; without one, the caller is known by a client certificate."""

    def may(self, scope: Scope) -> bool:
        """Whether the caller may do what needs a scope."""
        return scope in {"read", self.scope}


class Callers(Section):
    """All who may call."""

    callers: Annotated[tuple[Caller, ...], Field(strict=False)]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the file.

        Raises:
            ReleaseError: there is none, or it says something else.
        """
        return read_section(
            path,
            cls,
            error=ReleaseError,
            otherwise="Make such a list of callers with fedlora registry token add.",
        )

    def write(self, path: Path) -> None:
        """Write the file.

        Raises:
            StorageError: it cannot be written.
        """
        atomic.write_file(path, write_yaml(self.model_dump(mode="json", exclude_none=True)))

    @classmethod
    def change(cls, path: Path, how: Callable[[Self], Self]) -> None:
        """Read the file, if there is one, and write what becomes of it; one at a time does so.

        Raises:
            ReleaseError: it says something else, or the change cannot be made.
            StorageError: it cannot be written.
        """
        with atomic.alone(path.with_name(f".{path.name}.lock")):
            how(cls.read(path) if path.exists() else cls(callers=())).write(path)

    def adding(self, name: str, *, scope: Scope, token: str | None) -> Self:
        """Return the list with one more caller.

        Args:
            name: what the log calls it; without a token, the name in its certificate.
            scope: what it may do.
            token: what it shows.

        Raises:
            ReleaseError: it is there already, or the name is none.
        """
        if name in self._names:
            raise ReleaseError(f"{name} is there already. Remove it first.")
        digest = None if token is None else _digest(token)
        since = stamp(datetime.now(UTC))
        try:
            entry = Caller(name=name, scope=scope, since=since, token=digest)
        except ValidationError:
            raise ReleaseError(f"{name!r:.80}: letters, digits, - _ and . were expected.") from None
        return type(self)(callers=(*self.callers, entry))

    def removing(self, name: str) -> Self:
        """Return the list without a caller.

        Raises:
            ReleaseError: there is no such caller.
        """
        if name not in self._names:
            known = ", ".join(sorted(self._names)) or "none"
            raise ReleaseError(f"There is no {name!r:.80}, only: {known}.")
        return type(self)(callers=tuple(c for c in self.callers if c.name != name))

    def with_token(self, token: str) -> Caller | None:
        """Return who shows this token. All are compared, each in a time that tells nothing."""
        shown, found = _digest(token), None
        for caller in self.callers:
            if caller.token is not None and hmac.compare_digest(caller.token, shown):
                found = caller
        return found

    def with_certificate(self, names: Iterable[str]) -> Caller | None:
        """Return whom a verified client certificate with these names is of."""
        proven = set(names)
        return next((c for c in self.callers if c.token is None and c.name in proven), None)

    @property
    def _names(self) -> Collection[str]:
        return {caller.name for caller in self.callers}


class CallersFile:
    """The file, read again whenever it has changed: who was removed is out at once.

    Args:
        path: of the file.

    Raises:
        ReleaseError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._state = self._look()
        self._callers = Callers.read(path)

    def callers(self) -> Callers:
        """Return who may call now.

        Raises:
            ReleaseError: the file cannot be read any more.
        """
        state = self._look()
        if state != self._state:
            self._callers = Callers.read(self._path)
            self._state = state
        return self._callers

    def _look(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size


def new_token() -> str:
    """Return a new token."""
    return _PREFIX + secrets.token_urlsafe(_TOKEN_BYTES)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
