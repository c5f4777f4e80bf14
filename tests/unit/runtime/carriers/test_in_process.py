"""The grid without a network: it carries what Flower's own grids carry."""

import pytest
from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.run import Run

from fedlora.runtime.carriers.in_process import InProcessGrid

app = ClientApp()


@app.query()
def answer(message: Message, context: Context) -> Message:
    """Say who was asked what; remember how often; fail when told to."""
    question = message.content["question"]["text"]
    if question == "fail":
        raise RuntimeError("the disk is full")
    if question == "stop":
        raise KeyboardInterrupt
    count = context.state.setdefault("asked", ConfigRecord({"times": 0}))
    count["times"] = count["times"] + 1
    facts = {
        "node": context.node_id,
        "partition": context.node_config["partition-id"],
        "partitions": context.node_config["num-partitions"],
        "times": count["times"],
        "text": question,
    }
    return Message(RecordDict({"answer": ConfigRecord(facts)}), reply_to=message)


@pytest.fixture
def grid() -> InProcessGrid:
    """Three clients."""
    return InProcessGrid(app, clients=3)


def question(text: str, node: int) -> Message:
    content = RecordDict({"question": ConfigRecord({"text": text})})
    return Message(content, node, MessageType.QUERY, group_id="1")


def test_every_client_is_a_node_with_its_own_partition(grid):
    """Nodes are numbered from one, partitions from zero."""
    replies = list(grid.send_and_receive([question("who", node) for node in grid.get_node_ids()]))
    answers = [reply.content["answer"] for reply in replies]
    assert [a["node"] for a in answers] == list(grid.get_node_ids()) == [1, 2, 3]
    assert [a["partition"] for a in answers] == [0, 1, 2]
    assert {a["partitions"] for a in answers} == {3}


def test_a_message_is_built_as_flower_builds_it(grid):
    """create_message and Message make the same instruction."""
    content = RecordDict({"question": ConfigRecord({"text": "who"})})
    message = grid.create_message(content, MessageType.QUERY, 2, "7", ttl=30)
    assert message.metadata.dst_node_id == 2
    assert message.metadata.group_id == "7"
    assert message.metadata.ttl == 30
    (reply,) = grid.send_and_receive([message])
    assert reply.content["answer"]["node"] == 2


def test_every_message_has_an_id_of_its_own_and_a_reply_names_it(grid):
    """Also when equal messages are sent again."""
    identifiers = [*grid.push_messages([question("a", 1), question("a", 1)])]
    identifiers += grid.push_messages([question("a", 1)])
    assert len(set(identifiers)) == 3
    for identifier in identifiers:
        (reply,) = grid.pull_messages([identifier])
        assert reply.metadata.reply_to_message_id == identifier


def test_a_client_runs_when_its_reply_is_pulled(grid):
    """One at a time, in the order asked for, and each reply comes once."""
    first, second = grid.push_messages([question("first", 1), question("second", 2)])
    (reply,) = grid.pull_messages([second, first])
    assert reply.content["answer"]["text"] == "second"
    (reply,) = grid.pull_messages([second, first])
    assert reply.content["answer"]["text"] == "first"
    assert list(grid.pull_messages([second, first])) == []
    assert list(grid.pull_messages(["unknown"])) == []


def test_a_client_keeps_its_state_between_messages(grid):
    """Each client its own, as on a SuperNode."""
    nodes = [1, 1, 2]
    replies = grid.send_and_receive([question("who", node) for node in nodes])
    assert [reply.content["answer"]["times"] for reply in replies] == [1, 2, 1]


def test_replies_come_while_others_are_still_to_run(grid):
    """The second client has not run when the first reply is there."""
    replies = iter(grid.send_and_receive([question("a", 1), question("stop", 2)]))
    assert next(replies).content["answer"]["text"] == "a"
    with pytest.raises(KeyboardInterrupt):
        next(replies)


def test_a_failing_client_is_an_error_reply(grid):
    """It says why, names the message that it answers, and the others go on."""
    failing, healthy = grid.push_messages([question("fail", 1), question("a", 2)])
    (reply,) = grid.pull_messages([failing])
    assert reply.has_error()
    assert reply.error.reason == "RuntimeError: the disk is full"
    assert reply.metadata.reply_to_message_id == failing
    (reply,) = grid.pull_messages([healthy])
    assert not reply.has_error()


def test_a_message_to_nobody_is_an_error_reply(grid):
    """As from Flower, when a node has gone."""
    (reply,) = grid.send_and_receive([question("who", 9)])
    assert reply.has_error()


def test_what_the_app_cannot_handle_is_an_error_reply(grid):
    """This app answers queries only."""
    content = RecordDict({"question": ConfigRecord({"text": "who"})})
    (reply,) = grid.send_and_receive([Message(content, 1, MessageType.TRAIN, group_id="1")])
    assert reply.has_error()


def test_a_run_can_be_set(grid):
    """Flower's own grids are told which run they serve."""
    run = Run.create_empty(run_id=5)
    grid.set_run(run)
    assert grid.run is run
