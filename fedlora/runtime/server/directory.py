"""Who may take part: a small file for each site, and how a site gets from one state to the next.

::

    invited ── request with the token ──► waiting ── operator compares ──► admitted
       ▲                                     │                                │
       └───────────── invited anew ──────────┴──────────► revoked ◄───────────┘

The front and the command line change it, one at a time, and each change is there whole or not at
all.
"""

import fcntl
import hashlib
import hmac
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

from pydantic import ValidationError

from fedlora import atomic
from fedlora.errors import EnrolmentError
from fedlora.runtime.enrolment import EnrolmentRequest, NodeKey, State, fingerprint
from fedlora.runtime.server.folder import ServerFolder
from fedlora.sections import NAME, Digest, Name, Section
from fedlora.signing import PublicKey, RawKey

_NOT_EXPECTED = (
    "this site and token are not expected: the token was used, replaced, or is another site's. "
    "Ask the aggregator's operator for a new join bundle (fedlora server invite)."
)
"""The same for an unknown site and a wrong token, so that nobody learns which sites there are."""


class Entry(Section):
    """What the directory knows of a site."""

    site: Name
    state: State
    since: str
    """When it got into this state, UTC, ISO 8601."""
    token_digest: Digest | None = None
    """SHA-256 of the token that it may enrol with, in hex; none once it was used."""
    node_key: NodeKey | None = None
    gate_key: RawKey | None = None
    node_id: int | None = None
    """How SuperLink knows it."""
    reason: str | None = None
    """Why it was revoked."""

    @property
    def fingerprint(self) -> str | None:
        """The fingerprint of its keys, once it has sent them."""
        return (
            fingerprint(self.node_key, self.gate_key) if self.node_key and self.gate_key else None
        )


class Directory:
    """The sites of an aggregator."""

    def __init__(self, folder: ServerFolder) -> None:
        self._path = folder.directory

    def entries(self) -> Sequence[Entry]:
        """Return all sites, by name.

        Raises:
            EnrolmentError: a file is damaged.
        """
        names = sorted(path.stem for path in self._path.glob("[!.]*.json"))
        return [self.entry(name) for name in names]

    def entry(self, site: str) -> Entry:
        """Return one site.

        Raises:
            EnrolmentError: the site is not known, or its file is damaged.
        """
        path = self._path / f"{site}.json"
        try:
            return Entry.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise EnrolmentError(
                f"No site {site} is known. Invite it first: fedlora server invite {site}."
            ) from None
        except (OSError, ValidationError) as error:
            raise EnrolmentError(
                f"{path}: this entry is damaged ({error}). Restore it from a backup, or delete it "
                "and invite the site anew."
            ) from error

    def admitted(self) -> Mapping[int, str]:
        """Return the sites that may take part, by their node id."""
        return {e.node_id: e.site for e in self._admitted() if e.node_id is not None}

    def admitted_keys(self) -> Mapping[str, str]:
        """Return the sites that may take part, by their node's key."""
        return {e.node_key: e.site for e in self._admitted() if e.node_key is not None}

    def gates(self) -> Mapping[str, PublicKey]:
        """Return the key of each site's gate, also of one whose last answer is still to come."""
        return {e.site: PublicKey.of(e.gate_key) for e in self.entries() if e.gate_key}

    def changed_at(self) -> int:
        """Return the time stamp of the last change, in ns; two changes within a tick share it."""
        with atomic.storage_errors(self._path):
            return self._path.stat().st_mtime_ns

    def invite(self, site: str, *, token: str) -> None:
        """Expect a site to enrol with a token; what it was invited with before is void.

        Raises:
            EnrolmentError: it is admitted, or the name is none.
        """
        if not re.fullmatch(NAME, site):
            raise EnrolmentError(
                f"{site!r} cannot be a site's name: it takes 1 to 64 letters, digits, dots, dashes "
                "and underscores, and starts with a letter or a digit."
            )
        with self._locked():
            if self._has(site) and self.entry(site).state == "admitted":
                raise EnrolmentError(
                    f"Site {site} is admitted. To change its keys, revoke it first: "
                    f"fedlora server revoke {site} --reason …"
                )
            self._write(
                Entry(site=site, state="invited", since=_now(), token_digest=_digest(token))
            )

    def enrol(self, request: EnrolmentRequest) -> State:
        """Take a site's request, and return where the site stands then.

        The token is good once. A request with the keys of an earlier one changes nothing and
        needs no token.

        Raises:
            EnrolmentError: the site or the token is not expected, or other keys came first.
        """
        with self._locked():
            known = self.entry(request.site) if self._has(request.site) else None
            if known and (known.node_key, known.gate_key) == (request.node_key, request.gate_key):
                return known.state
            expected = (known.token_digest if known else None) or ""
            token = _digest(request.token or "")
            if not hmac.compare_digest(expected, token):  # an unknown site takes as long
                raise EnrolmentError(_NOT_EXPECTED)
            arrived = Entry(
                site=request.site,
                state="waiting",
                since=_now(),
                node_key=request.node_key,
                gate_key=request.gate_key,
            )
            self._write(arrived)
            return arrived.state

    def admit(self, site: str, *, expected: str, node_id: int) -> None:
        """Let a site take part.

        Args:
            site: Its name.
            expected: The fingerprint of the keys that were compared.
            node_id: How SuperLink knows its node key.

        Raises:
            EnrolmentError: it is not waiting with these keys, nor admitted with them.
        """
        with self._locked():
            entry = self.entry(site)
            if entry.fingerprint != expected or entry.state not in {"waiting", "admitted"}:
                raise EnrolmentError(f"Site {site} has changed in the meantime: look again.")
            change = {"state": "admitted", "since": _now(), "node_id": node_id}
            self._write(entry.model_copy(update=change))

    def revoke(self, site: str, *, reason: str) -> Entry:
        """Refuse a site from now on, whatever state it was in; its keys stay on record.

        Raises:
            EnrolmentError: the site is not known.
        """
        with self._locked():
            change = {"state": "revoked", "since": _now(), "token_digest": None, "reason": reason}
            entry = self.entry(site)
            if entry.state != "revoked":
                entry = entry.model_copy(update=change)
                self._write(entry)
            return entry

    def _admitted(self) -> Iterator[Entry]:
        return (entry for entry in self.entries() if entry.state == "admitted")

    def _has(self, site: str) -> bool:
        return (self._path / f"{site}.json").is_file()

    def _write(self, entry: Entry) -> None:
        atomic.write_file(self._path / f"{entry.site}.json", entry.model_dump_json(indent=1))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the directory alone; the lock goes with the process."""
        with atomic.storage_errors(self._path):
            handle = os.open(self._path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
