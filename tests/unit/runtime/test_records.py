"""Our values inside Flower's records, and what is refused there."""

import hashlib
import json

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedlora.chained_file import EMPTY, Head
from fedlora.errors import WireError
from fedlora.gate.evidence.statements import Receipt, SignedHead
from fedlora.runtime import records
from tests.evidence import signer

TASK = records.Task(
    recipe="{datasets: [{path: x}], privacy: {unit: none}}\n", run="demo-1", round=3
)


def config(**values: object) -> RecordDict:
    return RecordDict({"task": ConfigRecord(values)})


@pytest.mark.parametrize("number", [0, 3, 2**32 - 1])
def test_a_task_survives_flower(number):
    """Recipe, run and round come back equal."""
    task = records.Task(recipe="name: grün\n", run="demo-1", round=number)
    assert records.Task.of(records.instruction(task.to_record(), None)) == task


def test_an_instruction_carries_the_adapter_when_there_is_one():
    """A question who is there carries none."""
    asked = records.instruction(TASK.to_record(), None)
    with pytest.raises(WireError, match=r"One array of type fedlora\.wire\.v1 was expected"):
        records.unpack(asked)
    told = records.instruction(TASK.to_record(), records.pack(b"adapter"))
    assert records.unpack(told) == b"adapter"
    assert records.Task.of(told) == TASK


@pytest.mark.parametrize("run", ["", "..", "../x", "/x", "a/b", "a" * 129, "a\n", "."])
def test_a_run_that_could_leave_the_sites_folder_is_refused(run):
    """A run's name becomes a folder's name at the site."""
    with pytest.raises(WireError, match="run: a name of"):
        records.Task.of(config(recipe="a", run=run, round=1))


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        config(),
        config(recipe="a", run="b"),
        config(recipe=1, run="b", round=1),
        config(recipe="a", run=b"b", round=1),
        config(recipe="a", run="b", round="1"),
        config(recipe="a", run="b", round=1.0),
        config(recipe="a", run="b", round=True),
        RecordDict({"task": MetricRecord({"round": 1})}),
    ],
)
def test_a_message_without_a_task_is_refused(content):
    """The message says what was expected."""
    with pytest.raises(WireError, match="a recipe, a run and a round were expected"):
        records.Task.of(content)


@pytest.mark.parametrize("number", [-1, 2**32, -(2**40)])
def test_a_round_that_cannot_be_is_refused(number):
    """The wire's header holds 32 bits; nothing wraps around."""
    with pytest.raises(WireError, match=f"round: .* but it is {number}"):
        records.Task.of(config(recipe="a", run="b", round=number))


@pytest.mark.parametrize("payload", [b"", b"\x00\xff", bytes(10_000)])
def test_a_payload_is_one_array_byte_for_byte(payload):
    """With our own serialisation type, so that nobody takes it for NumPy's."""
    packed = records.pack(payload)
    assert [array.stype for array in packed.values()] == [records.STYPE]
    assert records.unpack(RecordDict({"adapter": packed})) == payload


def array(stype: str = records.STYPE) -> Array:
    return Array(dtype="uint8", shape=(1,), stype=stype, data=b"x")


@pytest.mark.parametrize(
    ("arrays", "came"),
    [
        ({}, "none"),
        ({"adapter": array("numpy.ndarray")}, "numpy.ndarray"),
        ({"adapter": array("pickle")}, "pickle"),
        ({"other": array()}, "fedlora.wire.v1"),
        ({"adapter": array(), "other": array()}, "fedlora.wire.v1"),
    ],
)
def test_anything_but_one_array_of_ours_is_refused(arrays, came):
    """Another type, another name, or a second array; the message says what came."""
    with pytest.raises(WireError, match=f"was expected, but .*{came}.* came"):
        records.unpack(RecordDict({"adapter": ArrayRecord(arrays)}))


def test_a_reply_holds_metrics_and_at_most_one_update():
    """An answer to an evaluation holds metrics alone."""
    trained = records.reply({"train_loss": 1.5}, payload=b"update")
    assert records.metrics_of(trained) == {"train_loss": 1.5}
    assert records.unpack(trained) == b"update"
    evaluated = records.reply({"eval_loss_sum": 2.5, "eval_tokens": 7})
    assert records.metrics_of(evaluated) == {"eval_loss_sum": 2.5, "eval_tokens": 7}
    assert not evaluated.array_records


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (RecordDict(), "no metrics"),
        (RecordDict({"other": MetricRecord({"train_loss": 1.0})}), "no metrics"),
        (RecordDict({"metrics": MetricRecord({"train_loss": [1.0]})}), "'train_loss' is a list"),
    ],
)
def test_metrics_that_are_not_single_numbers_are_refused(content, says):
    """A list could carry data."""
    with pytest.raises(WireError, match=says):
        records.metrics_of(content)


@pytest.mark.parametrize("name", ["north", "site-1", "2", "A.b_c", "x" * 64])
def test_a_site_introduces_itself(name):
    """By any name that a recipe can give."""
    assert records.site_name_of(records.introduction(name)) == name


@pytest.mark.parametrize(
    "name",
    ["", "..", "../../etc/passwd", "/etc/passwd", "a/b", ".hidden", "a\n", "a\x00", "x" * 65, "ü"],
)
def test_a_name_that_no_recipe_can_give_is_refused(name):
    """Names become files in the spool, so a client cannot choose a path."""
    with pytest.raises(WireError, match="calls itself"):
        records.site_name_of(records.introduction(name))


@pytest.mark.parametrize("content", [RecordDict(), RecordDict({"site": ConfigRecord({"name": 3})})])
def test_a_reply_without_a_name_is_refused(content):
    """The message says what is missing."""
    with pytest.raises(WireError, match="does not say which site"):
        records.site_name_of(content)


HASH = "0123456789abcdef" * 4


@pytest.mark.parametrize("head", [EMPTY, Head(count=2**63 - 1, hash=HASH)])
def test_a_head_survives_flower(head):
    """In a reply, and in the instruction that gives it back."""
    answered = records.reply({}, payload=b"update")
    records.add_head(answered, head)
    assert records.head_of(answered) == head
    assert records.unpack(answered) == b"update"
    asked = records.instruction(TASK.to_record(), None)
    records.add_head(asked, head)
    assert records.head_of(asked) == head


@pytest.mark.parametrize(
    "said",
    [
        None,
        {},
        {"count": 1},
        {"hash": HASH},
        {"count": -1, "hash": HASH},
        {"count": 2**63, "hash": HASH},
        {"count": True, "hash": HASH},
        {"count": 1.0, "hash": HASH},
        {"count": "1", "hash": HASH},
        {"count": 1, "hash": HASH[1:]},
        {"count": 1, "hash": HASH + "\n"},
        {"count": 1, "hash": HASH.upper()},
        {"count": 1, "hash": HASH.encode()},
        {"count": 1, "hash": HASH, "rows": 3},
    ],
)
def test_a_head_is_a_count_and_a_hash_and_nothing_else(said):
    """More could carry data; other types would be no head."""
    content = records.instruction(TASK.to_record(), None)
    if said is not None:
        content["ledger"] = ConfigRecord(said)
    with pytest.raises(WireError, match="how far the site's ledger has come"):
        records.head_of(content)


STATEMENTS = [
    SignedHead.sign(
        signer(), count=3, hash=HASH, site="north", time="2030-01-01T12:00:00.000+00:00"
    ),
    Receipt.sign(signer(), count=3, hash=HASH, site="north"),
]
READ = {"head": records.signed_head_of, "receipt": records.receipt_of}


@pytest.mark.parametrize("statement", STATEMENTS, ids=lambda each: each.kind)
def test_a_statement_of_evidence_survives_flower(statement):
    """A head in a reply, a receipt in an instruction."""
    content = records.reply({}, payload=b"update")
    records.add_evidence(content, statement)
    assert READ[statement.kind](content) == statement
    assert records.unpack(content) == b"update"


@pytest.mark.parametrize("kind", READ)
@pytest.mark.parametrize("change", [None, {"count": -1}, {"more": 1}, {"signature": b"x"}], ids=str)
def test_a_message_without_evidence_is_refused(kind, change):
    """Nothing, or anything but the statement; a receipt is no head."""
    content = records.reply({})
    with pytest.raises(WireError, match=f"holds no {kind} of the site's evidence log"):
        READ[kind](content)
    [statement] = [each for each in STATEMENTS if each.kind == kind]
    [other] = [each for each in STATEMENTS if each.kind != kind]
    records.add_evidence(content, statement if change else other)
    content["evidence"].update(change or {})
    with pytest.raises(WireError, match=f"holds no {kind} of the site's evidence log"):
        READ[kind](content)


def test_digests_are_of_the_exact_bytes():
    """SHA-256 of the payload; an answer without one has a digest of its content alone."""
    digests = records.digests_of(records.reply({"train_loss": 1.0}, payload=b"update"))
    assert digests.size == 6
    assert digests.payload == hashlib.sha256(b"update").hexdigest()
    bare = records.digests_of(records.reply({"train_loss": 1.0}))
    assert (bare.size, bare.payload) == (0, None)
    assert bare.content != digests.content


def test_the_content_is_digested_as_documented():
    """So that who keeps the message can do it too."""
    array = ["uint8", [6], records.STYPE, hashlib.sha256(b"update").hexdigest()]
    facts = {
        "adapter": ["ArrayRecord", {"adapter": array}],
        "metrics": ["MetricRecord", {"train_loss": 1.5}],
    }
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    content = records.reply({"train_loss": 1.5}, payload=b"update")
    assert records.digests_of(content).content == hashlib.sha256(text.encode()).hexdigest()


def content(**changes: object) -> RecordDict:
    whole = {
        "array": ArrayRecord({"a": array()}),
        "config": ConfigRecord({"a": 1, "b": b"x", "c": [1.0, 2.0], "d": True}),
        "metrics": MetricRecord({"a": 1, "b": 2.0}),
    }
    return RecordDict(whole | changes)


def test_evidence_is_no_part_of_what_it_says():
    """The head is added when the entry is written; nor does the order of records count."""
    plain = content()
    marked = RecordDict(dict(reversed(content().items())))
    records.add_evidence(marked, STATEMENTS[0])
    assert records.digests_of(marked) == records.digests_of(plain)


@pytest.mark.parametrize(
    "changes",
    [
        {"array": ArrayRecord({"a": array("other")})},
        {"array": ArrayRecord({"a": array(), "b": array()})},
        {"array": ConfigRecord({})},
        {"config": ConfigRecord({"a": 1, "b": "x", "c": [1.0, 2.0], "d": True})},
        {"config": ConfigRecord({"a": 1, "b": b"x", "c": [2.0, 1.0], "d": True})},
        {"config": ConfigRecord({"a": True, "b": b"x", "c": [1.0, 2.0], "d": True})},
        {"metrics": MetricRecord({"a": 1.0, "b": 2.0})},
        {"more": MetricRecord({})},
    ],
    ids=range(8),
)
def test_another_content_has_another_digest(changes):
    """Types, order in a list, and empty records count."""
    assert records.digests_of(content(**changes)).content != records.digests_of(content()).content
