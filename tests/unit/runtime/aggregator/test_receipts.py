"""The aggregator's memory of how far each site's ledger has come."""

import threading
from pathlib import Path

import pytest

from fedlora.errors import StorageError, WireError
from fedlora.privacy.ledger import EMPTY, Head
from fedlora.runtime.aggregator.receipts import Receipts
from fedlora.runtime.run_folder import RunFolder
from fedlora.runtime.site.memory import FOLDER, SIMULATED


def head(count: int, *, of: str = "a") -> Head:
    return Head(count=count, hash=of * 64)


def taken(folder, *heads: Head) -> Receipts:
    """Return receipts after a site, asked anew each time, answered with these heads."""
    receipts = Receipts(folder)
    for each in heads:
        receipts.sent_to(["north"])
        receipts.take("north", each)
    return receipts


def test_the_newest_head_of_each_site_is_sent_back(tmp_path):
    """Also by an aggregator that was started anew; a site that never answered has no rows yet."""
    taken(tmp_path, head(2), head(5, of="b"), head(5, of="b"))
    again = Receipts(tmp_path)
    sent = {"north": head(5, of="b"), "south": EMPTY}
    assert again.sent_to(["north", "south"]) == sent


@pytest.mark.parametrize(
    ("worse", "says"),
    [
        (EMPTY, "north says that its ledger has 0 rows, but it had 5 before: an older ledger"),
        (head(4), "north says that its ledger has 4 rows, but it had 5 before: an older ledger"),
        (head(5, of="b"), "north says that row 5 of its ledger has the hash b{12}, but it was a"),
    ],
)
def test_a_head_that_goes_back_or_changes_is_refused_by_name(tmp_path, worse, says):
    """What was known before stays known."""
    receipts = taken(tmp_path, head(5))
    receipts.sent_to(["north"])
    with pytest.raises(WireError, match=says):
        receipts.take("north", worse)
    assert Receipts(tmp_path).sent_to(["north"]) == {"north": head(5)}


def test_a_site_that_answers_two_runs_at_once_is_no_liar(tmp_path):
    """An answer may overtake an older one; no receipt is set back by that."""
    one, other = Receipts(tmp_path), Receipts(tmp_path)
    for receipts in (one, other):
        receipts.sent_to(["north"])
    one.take("north", head(7))
    other.take("north", head(6))
    assert Receipts(tmp_path).sent_to(["north"]) == {"north": head(7)}
    with pytest.raises(WireError, match="row 7"):
        other.take("north", head(7, of="b"))


def test_of_two_answers_at_once_the_slower_sets_nothing_back(tmp_path, monkeypatch):
    """Two runs' processes share one receipt: one may not write between the other's look and its."""
    slow, fast = Receipts(tmp_path), Receipts(tmp_path)
    for receipts in (slow, fast):
        receipts.sent_to(["north"])
    keep, overtaking = Head.keep, threading.Thread(target=fast.take, args=("north", head(7)))

    def overtaken(of: Head, path: Path) -> None:
        if of.count == 6:
            overtaking.start()
            overtaking.join(timeout=0.3)
        keep(of, path)

    monkeypatch.setattr(Head, "keep", overtaken)
    slow.take("north", head(6))
    overtaking.join()
    assert Receipts(tmp_path).sent_to(["north"]) == {"north": head(7)}


@pytest.mark.parametrize("content", ["", "5", "five 00", "5 00 00", "ü"])
def test_a_broken_receipt_stops_the_aggregator(tmp_path, content):
    """To go on without it would forget what it was kept for; the error names the file."""
    taken(tmp_path, head(5))
    (tmp_path / "north").write_text(content, encoding="utf-8")
    with pytest.raises(StorageError, match="north: the receipt of the ledger of north cannot be"):
        Receipts(tmp_path).sent_to(["north"])


def test_receipts_last_as_long_as_the_ledgers(tmp_path, monkeypatch):
    """Runs of one folder share them; simulated sites that end with their run take theirs along."""
    run = RunFolder(tmp_path / "runs" / "demo-1")
    monkeypatch.setenv(FOLDER, str(tmp_path / "sites"))
    monkeypatch.delenv(SIMULATED, raising=False)
    taken(tmp_path / "runs" / "receipts", head(3))
    assert Receipts.of(run).sent_to(["north"]) == {"north": head(3)}
    monkeypatch.setenv(SIMULATED, "1")
    assert Receipts.of(run).sent_to(["north"]) == {"north": EMPTY}
    taken(tmp_path / "sites" / ".receipts", head(4))
    assert Receipts.of(run).sent_to(["north"]) == {"north": head(4)}
