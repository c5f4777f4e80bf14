"""The readable page of a pack."""

import re
from dataclasses import replace

import pytest

from fedlora.gate.evidence.entries import Logged
from fedlora.runtime.reports import evidence
from fedlora.runtime.reports.evidence import by_round, line_of, page_of
from tests.evidence import Site, configured, decided, received, refused, released


@pytest.fixture
def entries(tmp_path) -> list[Logged]:
    """Two rounds; of the second, an error left."""
    log = Site(tmp_path).log()
    log.append(configured(log))
    for number in (1, 2):
        log.append(received(log, number))
        log.append(decided(log, number))
    log.append(released(log, 1, size=1_500_000))
    log.append(released(log, 1, size=500))
    log.append(refused(2))
    return log.entries()


def test_rounds_are_counted(entries):
    """Instructions, answers and errors, and their bytes."""
    first, second = by_round(entries).values()
    assert (first.received, first.bytes_in, first.released, first.bytes_out) == (
        1,
        2000,
        2,
        1500500,
    )
    assert (second.received, second.released, second.bytes_out, second.refused) == (1, 0, 0, 1)


@pytest.mark.parametrize(
    ("purpose", "shown"),
    [
        ("train.share", "secure sum: share keys"),
        ("train.mask", "secure sum: masked update"),
        ("train.sign", "secure sum: sign who is in"),
        ("train.reveal", "secure sum: reveal shares"),
    ],
)
def test_stages_of_a_secure_sum_have_names(entries, purpose, shown):
    """What came and what left in each is a line like any other."""
    for logged in (entries[1], entries[-2]):
        staged = replace(logged, entry=replace(logged.entry, purpose=purpose))
        assert line_of(staged).what == shown
        assert shown in page_of([staged], site="north", key="")


def test_the_page_shows_every_entry(entries):
    """In words, with the bytes in full; no script, and nothing of another file."""
    page = page_of(entries, site="north", key="SHA256:abc")
    rows = re.findall(r'<tr><th scope="row">(\d+)</th><td>2030', page)
    assert rows == [str(number) for number in range(1, 9)]
    assert "<td>1,500,500</td>" in page
    assert "2 answers left in 2 rounds, 1.5 MB of updates in all; 1 time an error left" in page
    assert "<script" not in page
    assert not re.findall(r"(?:src|href)=", page)


def test_what_an_aggregator_wrote_is_escaped(entries):
    """Names of runs and reasons are shown as text."""
    hostile = replace(entries[2].entry, run="<script>", reasons=("<img src=x>",))
    page = page_of([replace(entries[2], entry=hostile)], site="north", key="")
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;script&gt;" in page


def test_what_an_aggregator_wrote_moves_no_cursor(entries):
    """Nor clears a terminal's screen."""
    hostile = replace(entries[2].entry, allowed=False, reasons=("a\x1b[2Jb\r\nc",))
    said = line_of(replace(entries[2], entry=hostile)).said
    assert said == "refused: a\ufffd[2Jb\ufffd\ufffdc"


def test_a_page_of_very_many_entries_shows_the_newest(entries, monkeypatch):
    """And says so; the sums are of all."""
    monkeypatch.setattr(evidence, "_MOST_LINES", 3)
    page = page_of(entries, site="north", key="")
    assert re.findall(r'<tr><th scope="row">(\d+)</th><td>2030', page) == ["6", "7", "8"]
    assert "The newest 3 of 8" in page
    assert "<td>1,500,500</td>" in page


def test_a_log_without_entries_has_a_page(entries):
    """Of the first export, before anything came."""
    assert "0 answers left in 0 rounds" in page_of([], site="north", key="")
