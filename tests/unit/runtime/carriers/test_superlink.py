"""The aggregator's end of the carrier: what became of messages whose node was away meanwhile."""

import time

import pytest
from flwr.app import Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import PullObjectResponse
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.runtime_pb2 import (
    GetNodesResponse,
    PullAppMessagesResponse,
    PushAppMessagesResponse,
)
from flwr.supercore.inflatable.inflatable_object import get_object_tree
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedlora.runtime.carriers import superlink
from fedlora.runtime.carriers.superlink import SuperLinkGrid
from fedlora.runtime.carriers.tasks import Endpoint

NODE = 7


class SuperLink:
    """A SuperLink that takes all messages and has no reply yet."""

    since = "2026-01-01T00:00:00+00:00"
    beginnings: tuple[Message, ...] = ()
    """Replies of which the content has not come yet."""

    def GetNodes(self, _):  # noqa: N802 - Flower's interface
        return GetNodesResponse(nodes=[NodeInfo(node_id=NODE, last_activated_at=self.since)])

    def PushMessages(self, request):  # noqa: N802 - likewise
        names = [message.metadata.message_id for message in request.messages_list]
        return PushAppMessagesResponse(message_ids=names)

    def PushObject(self, _):  # noqa: N802 - likewise
        raise AssertionError("no object was asked for")

    def PullMessages(self, _):  # noqa: N802 - likewise
        return PullAppMessagesResponse(
            messages_list=[message_to_proto(each) for each in self.beginnings],
            message_object_trees=[get_object_tree(each) for each in self.beginnings],
        )

    def PullObject(self, _):  # noqa: N802 - likewise
        self.since = "2026-01-01T00:02:00+00:00"  # the node is lost meanwhile
        return PullObjectResponse(object_found=True, object_available=False)


@pytest.fixture
def grid(monkeypatch) -> SuperLinkGrid:
    monkeypatch.setattr(superlink, "_LOOK", 0.0)
    TaskIdentity.task_id, TaskIdentity.node_id, TaskIdentity.run_id = 1, 1, 1
    made = SuperLinkGrid(Endpoint(address="127.0.0.1:1", secret=b""), "token", lambda: None)
    made._client = SuperLink()
    made.set_run(Run.create_empty(run_id=1))
    return made


def test_a_message_to_a_node_that_was_connected_anew_is_lost(grid):
    """Its SuperNode kept it in memory; that is said once, as of a node that is away."""
    (identifier,) = grid.push_messages([Message(RecordDict(), NODE, "train")])
    assert grid.pull_messages([identifier]) == []
    grid._client.since = "2026-01-01T00:01:00+00:00"
    (lost,) = grid.pull_messages([identifier])
    assert lost.error.code == ErrorCode.NODE_UNAVAILABLE
    assert lost.metadata.reply_to_message_id == identifier
    assert grid.pull_messages([identifier]) == []


def test_a_message_to_a_node_that_stayed_is_waited_for(grid):
    """However the others come and go."""
    grid._client.since = "2026-01-01T00:01:00+00:00"
    (identifier,) = grid.push_messages([Message(RecordDict(), NODE, "train")])
    assert [grid.pull_messages([identifier]) for _ in range(3)] == [[], [], []]


def test_the_rest_of_a_reply_is_not_waited_for_when_its_node_was_lost(grid):
    """Flower would wait three minutes, in which no other site's reply is taken."""
    message = Message(RecordDict(), NODE, "train")
    (identifier,) = grid.push_messages([message])
    reply = Message(RecordDict(), reply_to=message)
    reply.metadata.__dict__["_message_id"] = reply.object_id
    grid._client.beginnings = (reply,)
    began = time.monotonic()
    (lost,) = grid.pull_messages([identifier])
    assert lost.error.code == ErrorCode.MESSAGE_UNAVAILABLE
    assert lost.metadata.reply_to_message_id == identifier
    assert time.monotonic() - began < 60
