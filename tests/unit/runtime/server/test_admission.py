"""Admission: what a site's operator and the aggregator's compare, and what it changes."""

from typing import Self

import pytest

from fedlora.chained_file import Head
from fedlora.errors import EnrolmentError
from fedlora.runtime.aggregator.receipts import Receipts
from fedlora.runtime.enrolment import EnrolmentRequest
from fedlora.runtime.run_folder import RunFolder
from fedlora.runtime.server import admission
from fedlora.runtime.server.directory import Directory
from fedlora.runtime.server.folder import ServerFolder
from tests.deployment import new_keys

TOKEN = "t" * 43


class FakeControl:
    """A SuperLink that knows every key."""

    def __init__(self, _: ServerFolder) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def register(self, _: str) -> int:
        return 7

    def unregister(self, _: int) -> None:
        pass


@pytest.fixture(name="folder")
def _folder(tmp_path, monkeypatch) -> ServerFolder:
    monkeypatch.setattr(admission, "Control", FakeControl)
    folder = ServerFolder(tmp_path)
    folder.directory.mkdir()
    return folder


def enrolled(folder: ServerFolder) -> str:
    """Invite a site, let it send new keys, and return their fingerprint."""
    node_key, gate_key = new_keys()
    request = EnrolmentRequest(site="bank", token=TOKEN, node_key=node_key, gate_key=gate_key)
    Directory(folder).invite("bank", token=TOKEN)
    Directory(folder).enrol(request)
    return request.fingerprint


def seen(folder: ServerFolder) -> list[int]:
    """Return how far the site's logs were seen to come: its ledger and its evidence."""
    ledgers = Receipts.of(RunFolder(folder.runs / "a-run"))
    receipts = ledgers, Receipts(folder.evidence_receipts)
    return [each.sent_to(["bank"])["bank"].count for each in receipts]


def test_a_site_that_lost_its_logs_can_come_back_with_new_keys(folder):
    """Else each instruction would bring a receipt of a log that it cannot have.

    To admit a site again that only SuperLink forgot changes nothing; what is set aside is kept.
    """
    fingerprint = enrolled(folder)
    admission.admit(folder, "bank", fingerprint=fingerprint)
    for receipts in (folder.evidence_receipts, folder.ledger_receipts):
        receipts.mkdir(parents=True)
        Head(count=5, hash="0" * 64).keep(receipts / "bank")
    admission.admit(folder, "bank", fingerprint=fingerprint)
    assert seen(folder) == [5, 5]

    admission.revoke(folder, "bank", reason="its disk was lost")
    admission.admit(folder, "bank", fingerprint=enrolled(folder))
    assert seen(folder) == [0, 0]
    (aside,) = folder.evidence_receipts.glob(".bank.until-*")
    assert Head.kept(aside).count == 5


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (f"SHA256:{'A' * 43}=", "Somebody else may have used its bundle"),
        ("SHA256:another", "is no whole fingerprint"),
        ("SHA256:…", "is no whole fingerprint"),
        ("", "is no whole fingerprint"),
    ],
)
def test_another_fingerprint_is_refused(folder, said, message):
    """Also one that was pasted with a letter that no fingerprint has; a slip is no alarm."""
    enrolled(folder)
    with pytest.raises(EnrolmentError, match=message):
        admission.admit(folder, "bank", fingerprint=said)
    assert Directory(folder).admitted() == {}
