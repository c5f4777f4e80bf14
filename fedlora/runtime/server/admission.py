"""Letting a site take part, and refusing it from then on."""

import hmac
import re
from contextlib import suppress
from datetime import UTC, datetime

from fedlora import atomic
from fedlora.errors import EnrolmentError
from fedlora.runtime.server.control import Control
from fedlora.runtime.server.directory import Directory
from fedlora.runtime.server.folder import ServerFolder

_FINGERPRINT = re.compile("SHA256:[A-Za-z0-9+/]{43}=")


def admit(folder: ServerFolder, site: str, *, fingerprint: str) -> int:
    """Let a site take part whose fingerprint was compared, and return its node id.

    Again, it mends what is missing: a SuperLink that lost its database knows the site anew. A site
    that was revoked and comes with new keys may begin new logs: the receipts of its old ones are
    set aside.

    Raises:
        EnrolmentError: the site has not sent its keys, they are others, or it was revoked.
        RunError: SuperLink does not answer.
    """
    directory = Directory(folder)
    entry = directory.entry(site)
    if entry.state == "revoked":
        raise EnrolmentError(
            f"Site {site} was revoked ({entry.reason}). Invite it anew: "
            f"fedlora server invite {site}; it must make new keys."
        )
    if entry.node_key is None or entry.fingerprint is None:
        raise EnrolmentError(
            f"Site {site} has not sent its keys yet. Its operator runs fedlora client enroll with "
            f"{folder.bundle(site)}."
        )
    if not _FINGERPRINT.fullmatch(fingerprint):
        raise EnrolmentError(
            f"{fingerprint!r:.80} is no whole fingerprint: SHA256: and 44 letters were expected, "
            "each as the site's operator read it."
        )
    if not hmac.compare_digest(entry.fingerprint.encode(), fingerprint.encode()):
        raise EnrolmentError(
            f"Site {site} sent keys with the fingerprint {entry.fingerprint}, not {fingerprint}. "
            "Somebody else may have used its bundle: ask its operator by another channel, and if "
            f"it is not theirs, invite the site anew: fedlora server invite {site}."
        )
    with Control(folder) as control:
        node_id = control.register(entry.node_key)
    if entry.state == "waiting":
        _set_receipts_aside(folder, site)
    directory.admit(site, expected=fingerprint, node_id=node_id)
    return node_id


def revoke(folder: ServerFolder, site: str, *, reason: str) -> None:
    """Refuse a site from now on: the front at once, then SuperLink.

    Raises:
        EnrolmentError: the site is not known.
        RunError: SuperLink does not answer; the front refuses the site all the same.
    """
    entry = Directory(folder).revoke(site, reason=reason)
    if entry.node_id is not None:
        with Control(folder) as control:
            control.unregister(entry.node_id)


def _set_receipts_aside(folder: ServerFolder, site: str) -> None:
    """Keep what was seen of a site's logs where it counts no more: no site's name has a dot first.

    Raises:
        StorageError: the folder cannot be written.
    """
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    for receipts in (folder.evidence_receipts, folder.ledger_receipts):
        with atomic.storage_errors(receipts), suppress(FileNotFoundError):
            (receipts / site).replace(receipts / f".{site}.until-{now}")
