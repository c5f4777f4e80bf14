"""Any single change of a log or a pack is caught; here stands by what.

| change of the log's file | caught by |
|---|---|
| a byte of a row edited, a row dropped from the middle, rows swapped | chain |
| the same with all hashes after it made to fit, and the mirror | signatures |
| rows dropped from the end | mirror |
| the same with a mirror made to fit; an older file and its mirror put back | receipt, export |
| a row copied or forged to the end | signatures |
| an older file without its mirror | mirror |
"""

import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlora.chained_file import EMPTY, Head
from fedlora.errors import EvidenceError
from fedlora.gate.evidence.pack import Pack
from fedlora.gate.evidence.verification import Findings, verify_log, verify_pack
from tests.evidence import Site, configured

ENTRIES = 9
Rows = list[tuple[int, str, str]]
places = st.integers(0, ENTRIES - 2)


@cache
def whole() -> dict[str, bytes]:
    """Return the files of a log of nine entries, by name."""
    with tempfile.TemporaryDirectory() as name:
        site = Site(Path(name))
        log = site.log()
        log.append(configured(log))
        for number in (1, 2):
            site.answered(log, number)
        log.require_receipted(site.receipt(log), aggregator=site.aggregator.public)
        log.append(configured(log))
        assert log.head().count == ENTRIES
        files = [path for path in site.folder.rglob("*") if path.is_file()]
        return {str(path.relative_to(site.folder)): path.read_bytes() for path in files}


@contextmanager
def new_site() -> Iterator[Site]:
    """Yield a site with that log."""
    with tempfile.TemporaryDirectory() as name:
        site = Site(Path(name) / "evidence")
        for relative, content in whole().items():
            path = site.folder / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        yield site


def verify(site: Site) -> Findings:
    gate, aggregator = site.gate.public, site.aggregator.public
    return verify_log(site.folder, site=site.name, gate=gate, aggregator=aggregator)


def rewrite(site: Site, change: Callable[[Rows], Rows]) -> None:
    with closing(sqlite3.connect(site.folder / "log.sqlite")) as database, database:
        rows = database.execute("SELECT number, content, hash FROM rows ORDER BY number").fetchall()
        database.execute("DELETE FROM rows")
        database.executemany("INSERT INTO rows VALUES (?, ?, ?)", change(rows))


def made_to_fit(site: Site, change: Callable[[list[str]], list[str]]) -> None:
    """Change the texts, and make all numbers, hashes and the mirror fit, as anybody can."""
    end = EMPTY

    def fit(rows: Rows) -> Rows:
        nonlocal end
        fitted = []
        for text in change([text for _, text, _ in rows]):
            end = end.extended(text.encode())
            fitted.append((end.count, text, end.hash))
        return fitted

    rewrite(site, fit)
    end.keep(site.folder / "log.sqlite.head")


@settings(max_examples=40)
@given(at=places, position=st.integers(0, 10_000), letter=st.sampled_from("0aZ"))
def test_an_edited_entry_is_caught(at, position, letter):
    """By the chain; with all hashes made to fit, by the signatures."""

    def edited(text: str) -> str:
        where = position % len(text)
        other = letter if text[where] != letter else "b"
        return text[:where] + other + text[where + 1 :]

    with new_site() as site:
        rewrite(site, lambda r: [*r[:at], (r[at][0], edited(r[at][1]), r[at][2]), *r[at + 1 :]])
        with pytest.raises(EvidenceError, match=f"the log is broken at row {at + 1}:"):
            verify(site)
    with new_site() as site:
        made_to_fit(site, lambda texts: [*texts[:at], edited(texts[at]), *texts[at + 1 :]])
        with pytest.raises(EvidenceError, match=f"entry {at + 1} (is not signed|is no entry)"):
            verify(site)


@settings(max_examples=20)
@given(at=places)
def test_a_dropped_entry_is_caught(at):
    """From the middle: by the chain; with all hashes made to fit, by the signature of the next."""
    with new_site() as site:
        rewrite(site, lambda rows: rows[:at] + rows[at + 1 :])
        with pytest.raises(
            EvidenceError, match=f"the log is broken at row {at + 1}: it is missing"
        ):
            verify(site)
    with new_site() as site:
        made_to_fit(site, lambda texts: texts[:at] + texts[at + 1 :])
        with pytest.raises(EvidenceError, match=f"entry {at + 1} is not signed"):
            verify(site)


@settings(max_examples=20)
@given(pair=st.lists(st.integers(0, ENTRIES - 1), min_size=2, max_size=2, unique=True).map(sorted))
def test_swapped_entries_are_caught(pair):
    """By the chain; with all hashes made to fit, by the signatures."""

    def swapped(texts: list[str]) -> list[str]:
        one, other = pair
        texts[one], texts[other] = texts[other], texts[one]
        return texts

    def rows_swapped(rows: Rows) -> Rows:
        texts = swapped([text for _, text, _ in rows])
        return [
            (number, text, digest) for (number, _, digest), text in zip(rows, texts, strict=True)
        ]

    with new_site() as site:
        rewrite(site, rows_swapped)
        with pytest.raises(EvidenceError, match=f"the log is broken at row {pair[0] + 1}"):
            verify(site)
    with new_site() as site:
        made_to_fit(site, swapped)
        with pytest.raises(EvidenceError, match=f"entry {pair[0] + 1} is not signed"):
            verify(site)


@settings(max_examples=20)
@given(at=places, to=st.integers(0, ENTRIES))
def test_a_copied_entry_is_caught(at, to):
    """Wherever it is put, also at the end: by the signatures."""
    with new_site() as site:
        made_to_fit(site, lambda texts: [*texts[:to], texts[at], *texts[to:]])
        copied = to + 1 if to != at else to + 2  # before itself, its copy is the second
        with pytest.raises(EvidenceError, match=f"entry {copied} is not signed"):
            verify(site)


@settings(max_examples=20)
@given(left=st.integers(0, ENTRIES - 1))
def test_a_cut_log_is_caught(left):
    """By the mirror; with a mirror made to fit, by the next receipt, and by an earlier export."""
    with new_site() as site:
        rewrite(site, lambda rows: rows[:left])
        with pytest.raises(
            EvidenceError, match=f"it has {left} rows, and .*head has seen {ENTRIES}"
        ):
            verify(site)
    with new_site() as site:
        log = site.log()
        older = site.exported(log, site.folder.parent / "pack.zip").head()
        receipt = site.receipt(log)
        made_to_fit(site, lambda texts: texts[:left])
        found = verify(site)
        with pytest.raises(EvidenceError, match=r"but pack\.zip has 10: an older log was put in"):
            found.require_since(older, by="pack.zip")
        with pytest.raises(EvidenceError, match="an older database was restored"):
            site.log().require_receipted(receipt, aggregator=site.aggregator.public)


@settings(max_examples=10)
@given(more=st.integers(1, 4), mirror=st.booleans())
def test_an_older_file_is_caught(more, mirror):
    """Without its mirror by the mirror; with it by the receipt and by an earlier export."""
    with new_site() as site:
        shutil.copytree(site.folder, site.folder.parent / "old")
        log = site.log()
        for number in range(more):
            site.answered(log, number)
        older, receipt = site.exported(log, site.folder.parent / "p.zip").head(), site.receipt(log)
        for name in ("log.sqlite", "log.sqlite.head")[: 1 + mirror]:
            shutil.copy(site.folder.parent / "old" / name, site.folder / name)
        if not mirror:
            with pytest.raises(EvidenceError, match=r"log\.sqlite\.head has seen"):
                verify(site)
            return
        with pytest.raises(EvidenceError, match="an older log was put in its place"):
            verify(site).require_since(older, by="p.zip")
        with pytest.raises(EvidenceError, match="an older database was restored"):
            site.log().require_receipted(receipt, aggregator=site.aggregator.public)


@settings(max_examples=10)
@given(at=st.integers(0, ENTRIES - 1))
def test_a_log_that_the_gates_key_has_rewritten_is_caught(at):
    """By the receipt, and by an earlier export: all that is left against who holds the key."""
    with new_site() as site:
        log = site.log()
        older, receipt = site.exported(log, site.folder.parent / "p.zip").head(), site.receipt(log)
        made_to_fit(site, lambda texts: texts[:at])
        rewritten = site.log()
        while rewritten.head().count <= ENTRIES:
            rewritten.append(configured(rewritten))
        with pytest.raises(EvidenceError, match=r"Entry 10 is another than in p\.zip"):
            verify(site).require_since(older, by="p.zip")
        with pytest.raises(EvidenceError, match="another database than the aggregator has seen"):
            rewritten.require_receipted(receipt, aggregator=site.aggregator.public)


@pytest.fixture(scope="module")
def zipped(tmp_path_factory) -> tuple[Pack, Path]:
    """A pack, and its zip."""
    path = tmp_path_factory.mktemp("packs") / "pack.zip"
    with new_site() as site:
        return site.exported(site.log(), path), path


@settings(max_examples=150)
@given(data=st.data())
def test_a_flipped_bit_of_any_file_of_a_pack_is_caught(zipped, data):
    """In whatever file and place."""
    pack, _ = zipped
    name = data.draw(st.sampled_from(sorted(pack.files)))
    content = bytearray(pack.files[name])
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    site = Site(Path("nowhere"))
    flipped = Pack(name="pack", files={**pack.files, name: bytes(content)})
    with pytest.raises(EvidenceError):
        verify_pack(flipped, gate=site.gate.public, aggregator=site.aggregator.public)


@settings(max_examples=150)
@given(data=st.data())
def test_a_flipped_bit_of_a_zip_is_caught_or_changes_no_file(zipped, data):
    """A zip also holds times, rights and comments, which nobody reads."""
    pack, path = zipped
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with tempfile.TemporaryDirectory() as name:
        flipped = Path(name) / "pack.zip"
        flipped.write_bytes(content)
        try:
            read = Pack.read(flipped)
        except EvidenceError:
            return
    assert read.files == pack.files


def test_the_log_that_is_changed_here_is_whole_before():
    """So that it is the change that is caught."""
    with new_site() as site:
        made_to_fit(site, lambda texts: texts)
        found = verify(site)
        assert (found.head.count, found.receipted) == (ENTRIES, 7)
        assert isinstance(found.head, Head)
