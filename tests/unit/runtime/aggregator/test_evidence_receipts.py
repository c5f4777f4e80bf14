"""The aggregator's side of evidence: heads are checked and kept, receipts given."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from flwr.app import RecordDict

from fedlora.chained_file import EMPTY
from fedlora.errors import EvidenceError, WireError
from fedlora.gate.evidence.log import EvidenceLog
from fedlora.gate.evidence.statements import SignedHead
from fedlora.runtime import records
from fedlora.runtime.aggregator.evidence_receipts import EvidenceReceipts
from tests.evidence import Site, refused, signer


@pytest.fixture
def site(tmp_path) -> Site:
    return Site(tmp_path / "evidence")


@pytest.fixture
def new_receipts(site, tmp_path) -> Callable[[], EvidenceReceipts]:
    """Return the aggregator's receipts as one that is started anew has them."""
    return lambda: EvidenceReceipts(
        tmp_path / "receipts", signer=site.aggregator, gates=lambda: {"north": site.gate.public}
    )


def answer(log: EvidenceLog) -> RecordDict:
    """Return an answer of the site."""
    log.append(refused(1))
    content = records.reply({})
    records.add_evidence(content, log.signed_head())
    return content


def exchange(receipts: EvidenceReceipts, site: Site, log: EvidenceLog) -> None:
    """Play an instruction and its answer, as aggregator and gate do."""
    instruction = RecordDict()
    records.add_evidence(instruction, receipts.sent_to(["north"])["north"])
    log.require_receipted(records.receipt_of(instruction), aggregator=site.aggregator.public)
    receipts.take("north", answer(log))


def test_each_instruction_brings_the_newest_receipt(site, new_receipts):
    """Also of an aggregator that was started anew; the site logs each once."""
    for _ in range(3):
        exchange(new_receipts(), site, site.log())
    kinds = [each.kind for each in site.log().entries()]
    assert kinds == ["refused", "receipted", "refused", "receipted", "refused"]
    sent = new_receipts().sent_to(["north"])["north"]
    assert sent.signed_by(site.aggregator.public)
    assert (sent.count, sent.hash) == (5, site.log().head().hash)


def test_what_is_kept_is_the_sites_word(site, new_receipts, tmp_path):
    """With its signature: the aggregator can show it."""
    exchange(new_receipts(), site, site.log())
    kept = SignedHead.kept(tmp_path / "receipts" / "north")
    assert kept.signed_by(site.gate.public)
    assert kept.count == 1


def test_a_log_that_was_put_back_is_caught_at_both_ends(site, new_receipts, tmp_path):
    """The gate stops; an answer of one that does not is refused by name."""
    exchange(new_receipts(), site, site.log())
    shutil.copytree(site.folder, tmp_path / "yesterday")
    for _ in range(2):
        exchange(new_receipts(), site, site.log())
    shutil.rmtree(site.folder)
    shutil.copytree(tmp_path / "yesterday", site.folder)
    receipts = new_receipts()
    with pytest.raises(EvidenceError, match="an older database was restored"):
        exchange(receipts, site, site.log())
    with pytest.raises(WireError, match=r"north says that its evidence log has 2 rows, but it had"):
        receipts.take("north", answer(site.log()))


@pytest.mark.parametrize(
    "forge",
    [
        lambda site: Site(site.folder, gate=signer(3)),
        lambda site: Site(site.folder, name="south"),
    ],
    ids=["another key", "another site"],
)
def test_a_head_that_the_gate_did_not_sign_is_refused(site, new_receipts, forge, tmp_path):
    """Of another key than the one that was admitted, or of another site."""
    receipts = new_receipts()
    receipts.sent_to(["north"])
    with pytest.raises(WireError, match="north did not sign how far its evidence log has come"):
        receipts.take("north", answer(forge(site).log()))
    assert not (tmp_path / "receipts" / "north").exists()


def test_an_answer_without_a_head_is_refused(site, new_receipts):
    """A site that was admitted with a gate has evidence."""
    receipts = new_receipts()
    receipts.sent_to(["north"])
    with pytest.raises(WireError, match="holds no head of the site's evidence log"):
        receipts.take("north", records.reply({}))


def test_a_site_without_a_gate_has_no_evidence(new_receipts, tmp_path):
    """As in a simulation: nothing is sent, asked or kept."""
    receipts = new_receipts()
    assert receipts.sent_to(["simulated"]) == {}
    receipts.take("simulated", records.reply({}))
    assert not (Path(tmp_path) / "receipts").exists()


def test_a_site_that_is_admitted_while_a_run_goes_on_gets_receipts(site, tmp_path):
    """Its gate would refuse an instruction that brings none."""
    gates = {}
    receipts = EvidenceReceipts(tmp_path / "r", signer=site.aggregator, gates=lambda: gates)
    assert receipts.sent_to(["north"]) == {}
    gates["north"] = site.gate.public
    exchange(receipts, site, site.log())


def test_a_first_receipt_is_of_an_empty_log(site, new_receipts):
    """It is signed too: a gate that is brought none works for nobody."""
    first = new_receipts().sent_to(["north"])["north"]
    assert (first.count, first.hash) == (0, EMPTY.hash)
    site.log().require_receipted(first, aggregator=site.aggregator.public)
