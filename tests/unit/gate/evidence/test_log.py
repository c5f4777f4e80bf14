"""The log: entries in order, counted, receipted; old and forged ones refused."""

import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from fedlora.chained_file import EMPTY, Head
from fedlora.errors import EvidenceError, StorageError
from fedlora.gate.evidence.entries import Receipted, text_of
from fedlora.gate.evidence.statements import Receipt
from tests.evidence import NOON, Site, configured, decided, received, refused, released, signer


@pytest.fixture
def site(tmp_path) -> Site:
    return Site(tmp_path / "evidence")


def append_row(site: Site, text: str) -> None:
    """Append a row as somebody does who can compute SHA-256."""
    with closing(sqlite3.connect(site.folder / "log.sqlite")) as database, database:
        number, digest = database.execute(
            "SELECT number, hash FROM rows ORDER BY number DESC LIMIT 1"
        ).fetchone()
        head = Head(count=number, hash=digest).extended(text.encode())
        database.execute("INSERT INTO rows VALUES (?, ?, ?)", (head.count, text, head.hash))


def test_entries_come_back_in_their_order(site):
    """Each with its number, hash and time; by another process, too."""
    log = site.log()
    entries = [configured(log), received(log, 1), decided(log, 1), released(log, 1), refused(2)]
    heads = [log.append(entry) for entry in entries]
    logged = site.log().entries()
    assert [each.entry for each in logged] == entries
    assert [each.head for each in logged] == heads
    assert [each.kind for each in logged] == [
        "configured",
        "received",
        "decided",
        "released",
        "refused",
    ]
    assert logged[1].time == "2030-01-01T12:00:02.000+00:00"
    assert log.entries(after=heads[2]) == logged[3:]


def test_two_processes_write_one_log(site):
    """Each sees what the other has written, and goes on from there."""
    one, other = site.log(), site.log()
    one.append(refused(1))
    other.append(refused(2))
    assert one.append(refused(3)).count == 3
    assert other.head() == one.head()


def test_released_bytes_are_counted_by_round_and_since_a_time(site):
    """Those of other runs and rounds apart; a log that is opened anew counts the same."""
    log = site.log()
    for number, size in ((1, 10), (2, 200), (2, 3000)):
        log.append(released(log, number, size=size))
    log.append(released(log, 2, size=40_000, run="demo-2"))
    log.append(received(log, 2))
    for counted in (log, site.log()):
        assert counted.bytes_released("demo-1", 1) == 10
        assert counted.bytes_released("demo-1", 2) == 3200
        assert counted.bytes_released("demo-1", 3) == 0
        assert counted.bytes_released_since(NOON) == 43_210
        assert counted.bytes_released_since(NOON + timedelta(seconds=3)) == 43_000
        assert counted.bytes_released_since(NOON + timedelta(seconds=5)) == 0


def test_a_signed_head_is_the_gates_word(site):
    """Of the log as it is then."""
    log = site.log()
    head = log.append(refused(1))
    signed = log.signed_head()
    assert (signed.count, signed.hash, signed.site) == (head.count, head.hash, "north")
    assert signed.signed_by(site.gate.public)


def test_a_receipt_is_logged_once(site):
    """The first time that it covers more; an empty one says nothing."""
    log = site.log()
    nothing = Receipt.sign(site.aggregator, count=0, hash=EMPTY.hash, site="north")
    log.require_receipted(nothing, aggregator=site.aggregator.public)
    assert log.entries() == []
    log.append(refused(1))
    receipt = site.receipt(log)
    for each in (log, log, site.log()):
        each.require_receipted(receipt, aggregator=site.aggregator.public)
    first, second = log.entries()
    assert isinstance(second.entry, Receipted)
    assert (second.entry.count, second.entry.hash) == (first.head.count, first.head.hash)


def test_a_receipt_of_another_is_refused(site):
    """Of another site, or signed by another than the aggregator that was joined."""
    log = site.log()
    log.append(refused(1))
    receipt = site.receipt(log)
    others = (
        replace(receipt, site="south"),
        replace(receipt, count=0, hash=EMPTY.hash),
        Receipt.sign(signer(3), **{k: receipt.facts()[k] for k in ("count", "hash", "site")}),
    )
    for other in others:
        with pytest.raises(EvidenceError, match="brings no receipt of north's log that is signed"):
            log.require_receipted(other, aggregator=site.aggregator.public)
    assert len(log.entries()) == 1


def test_an_old_log_with_its_mirror_is_caught_by_the_receipt(site, tmp_path):
    """The aggregator remembers; the error says what to do, and nothing is written."""
    log = site.log()
    log.append(refused(1))
    shutil.copytree(site.folder, tmp_path / "yesterday")
    log.append(refused(2))
    receipt = site.receipt(log)
    shutil.copytree(tmp_path / "yesterday", site.folder, dirs_exist_ok=True)
    old = site.log()
    with pytest.raises(
        EvidenceError, match=r"it has 1 rows, and the aggregator has seen 2.*\.head"
    ):
        old.require_receipted(receipt, aggregator=site.aggregator.public)
    old.append(refused(3))
    with pytest.raises(EvidenceError, match="another database than the aggregator has seen"):
        old.require_receipted(receipt, aggregator=site.aggregator.public)
    assert len(old.entries()) == 2


def test_an_old_log_is_caught_by_the_process_that_wrote_on(site, tmp_path):
    """Without any receipt: it knows how far it has read."""
    log = site.log()
    log.append(refused(1))
    shutil.copytree(site.folder, tmp_path / "yesterday")
    log.append(refused(2))
    shutil.copytree(tmp_path / "yesterday", site.folder, dirs_exist_ok=True)
    with pytest.raises(EvidenceError, match="it has 1 rows, and this process has seen 2"):
        log.append(refused(3))


def test_what_another_has_appended_is_refused(site):
    """The chain's hash fits, as anybody can compute it; the signature does not."""
    log = site.log()
    head = log.append(refused(1))
    time = "2030-01-01T12:00:00.000+00:00"
    append_row(site, text_of(refused(2), time=time, before=head, signer=signer(3)))
    for use in (log.head, site.log):
        with pytest.raises(EvidenceError, match="entry 2 is not signed by the gate's key SHA256:"):
            use()


def test_a_copied_entry_is_refused(site):
    """A signature is good in one place alone."""
    log = site.log()
    log.append(refused(1))
    log.append(refused(2))
    with closing(sqlite3.connect(site.folder / "log.sqlite")) as database:
        [text] = database.execute("SELECT content FROM rows WHERE number = 2").fetchone()
    append_row(site, text)
    with pytest.raises(EvidenceError, match="entry 3 is not signed by the gate's key"):
        site.log()


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", "[" * 5000, '{"entry":1,"signature":1}'])
def test_what_is_no_entry_is_refused(site, text):
    """By number."""
    site.log().append(refused(1))
    append_row(site, text)
    with pytest.raises(EvidenceError, match="entry 2 is no entry of an evidence log"):
        site.log()


def test_an_entry_of_a_newer_version_is_named(site, monkeypatch):
    """Signed, but of a kind that is not known here."""
    head = site.log().append(refused(1))
    monkeypatch.setattr("fedlora.gate.evidence.entries._NAMES", {type(refused(1)): "novel"})
    append_row(site, text_of(refused(2), time="", before=head, signer=site.gate))
    with pytest.raises(EvidenceError, match=r"entry 2 says what this version .* does not know"):
        site.log()


def test_another_key_opens_no_log(site):
    """A log belongs to one key."""
    site.log().append(refused(1))
    site.gate = signer(3)
    with pytest.raises(EvidenceError, match="or another key is the gate's"):
        site.log()


def test_a_full_disk_stops_the_gate(site, small_disk):
    """What cannot be logged does not leave; the log stays whole."""
    log = site.log()
    log.append(refused(1))
    size = (site.folder / "log.sqlite").stat().st_size
    with small_disk(size), pytest.raises(StorageError, match="Make room there"):
        log.append(decided(log, 2, "x" * 10_000))
    assert len(site.log().entries()) == 1


def test_texts_are_kept_under_their_digest(site):
    """Once each; one that was changed or lost is missed by name."""
    log = site.log()
    digest = log.keep("name: grün\n")
    assert log.keep("name: grün\n") == digest
    assert log.text(digest) == "name: grün\n"
    kept: Path = site.folder / "texts" / digest
    kept.write_text("name: blau\n", encoding="utf-8")
    with pytest.raises(EvidenceError, match=f"{digest}: the recipe or policy"):
        log.text(digest)
    kept.unlink()
    with pytest.raises(EvidenceError, match=f"{digest}: the recipe or policy"):
        log.text(digest)


def test_a_log_that_was_thrown_away_is_missed(site):
    """Who deletes everything begins at zero, which the receipt shows."""
    log = site.log()
    log.append(refused(1))
    receipt = site.receipt(log)
    shutil.rmtree(site.folder)
    with pytest.raises(EvidenceError, match="it has 0 rows, and the aggregator has seen 1"):
        site.log().require_receipted(receipt, aggregator=site.aggregator.public)
