"""Signed heads and receipts: what they say, and what is none."""

import pytest

from fedlora.gate.evidence.statements import Receipt, SignedHead
from tests.evidence import signer

HASH = "0123456789abcdef" * 4
TIME = "2030-01-01T12:00:00.000+00:00"
HEAD = SignedHead.sign(signer(), count=3, hash=HASH, site="north", time=TIME)
RECEIPT = Receipt.sign(signer(), count=3, hash=HASH, site="north")


@pytest.mark.parametrize("statement", [HEAD, RECEIPT], ids=lambda each: each.kind)
def test_a_statement_is_read_back_with_its_signature(tmp_path, statement):
    """From what a message carries, and from the aggregator's file."""
    assert type(statement).read(statement.facts()) == statement
    statement.keep(tmp_path / "north")
    kept = type(statement).kept(tmp_path / "north")
    assert kept == statement
    assert kept.signed_by(signer().public)
    assert not kept.signed_by(signer(2).public)


@pytest.mark.parametrize(
    "change",
    [{"count": 4}, {"hash": HASH[::-1]}, {"site": "south"}, {"time": TIME.replace("12", "13")}],
    ids=str,
)
def test_a_changed_statement_is_not_signed(change):
    """Every field counts."""
    assert HEAD.signed_by(signer().public)
    assert not SignedHead.read(HEAD.facts() | change).signed_by(signer().public)


def test_a_receipt_is_no_head():
    """Under one key, the word for one is not good for the other."""
    facts = RECEIPT.facts() | {"time": TIME}
    assert not SignedHead.read(facts).signed_by(signer().public)


@pytest.mark.parametrize(
    "change",
    [
        {"count": -1},
        {"count": 2**63},
        {"count": True},
        {"count": 1.0},
        {"count": "3"},
        {"hash": HASH[1:]},
        {"hash": HASH + "\n"},
        {"hash": HASH.upper()},
        {"site": "../x"},
        {"site": 3},
        {"time": "now"},
        {"time": TIME + "0" * 100},
        {"signature": b"short"},
        {"signature": "text"},
        {"more": "data"},
    ],
    ids=str,
)
def test_anything_else_is_no_statement(change):
    """Of another type, out of bounds, or with a field more, which could carry data."""
    with pytest.raises(ValueError, match="count, hash, signature, site, time were expected"):
        SignedHead.read(HEAD.facts() | change)


def test_a_statement_that_lacks_a_field_is_none():
    """Each is needed."""
    for name in HEAD.facts():
        facts = HEAD.facts()
        del facts[name]
        with pytest.raises(ValueError, match="were expected, and nothing else"):
            SignedHead.read(facts)


@pytest.mark.parametrize(
    "text", [b"", b"{}", b"[]", b"\xff", HEAD.to_json()[:-1], HEAD.to_json().replace(b":3", b": 3")]
)
def test_a_file_in_another_spelling_is_no_statement(text):
    """One statement is one text."""
    with pytest.raises(ValueError):  # noqa: PT011 - of several texts, for the caller to wrap
        SignedHead.from_json(text)
