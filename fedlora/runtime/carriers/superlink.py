"""The aggregator's end of the carrier in a deployment: a Flower run, played by this process.

Flower never resumes a run whose ServerApp died. So a Flower run is to us what carries messages for
a while: a fedlora run that goes on after a stop is carried by a new one.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from typing import cast

import httpx
from flwr.app import Error, Message
from flwr.app.message import remove_content_from_message
from flwr.common.constant import ErrorCode, SubStatus
from flwr.common.serde import run_from_proto
from flwr.proto.message_pb2 import PullObjectRequest, PullObjectResponse
from flwr.proto.runtime_pb2 import PullTaskInputRequest, PushTaskOutputRequest
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError
from flwr.supercore.run import Run
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid

from fedlora.runtime.carriers.tasks import Endpoint, beating

_LOOK = 1.0
"""Seconds between looks for nodes that are connected anew."""


class SuperLinkGrid(HttpGrid):
    """Flower's own grid, which asks between messages whether it is still wanted.

    A SuperNode keeps in memory what it was sent and what it sends. SuperLink says that this is lost
    with the node only while the node is away, and waits three minutes for the rest of a reply; here
    it is said also when the node is back, and then.

    Args:
        endpoint: of the SuperLink.
        token: of the ServerApp's task.
        still_wanted: does nothing, or raises what ends the run.
    """

    def __init__(self, endpoint: Endpoint, token: str, still_wanted: Callable[[], None]) -> None:
        super().__init__(
            endpoint.address,
            insecure=endpoint.certificates is None,
            root_certificates=endpoint.certificates,
            token=token,
        )
        self._still_wanted = still_wanted
        self._sent: dict[str, tuple[Message, str]] = {}
        """What waits for a reply, without content, and since when its node was connected then."""
        self._connected: Mapping[int, str] = {}
        self._looked = -float("inf")
        self._asked: Sequence[str] = ()

    @property
    def _runtime_client(self) -> RuntimeHttpClient:
        client: RuntimeHttpClient = super()._runtime_client
        return cast(RuntimeHttpClient, _Impatient(client, given_up=self._is_reply_lost))

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        waiting = list(messages)
        since = self._connections(after=0)
        taken = list(super().push_messages(waiting))
        for identifier, message in zip(taken, waiting, strict=True):
            if identifier:
                known = since.get(message.metadata.dst_node_id, "")
                self._sent[identifier] = (remove_content_from_message(message), known)
        return taken

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self._still_wanted()
        self._asked = asked = list(message_ids)
        replies = list(super().pull_messages(asked))
        for reply in replies:
            self._sent.pop(reply.metadata.reply_to_message_id, None)
        return replies or self._forgotten(asked)

    def _forgotten(self, message_ids: Iterable[str]) -> list[Message]:
        """Return an error for each message whose node has been connected anew since it was sent."""
        connected = self._connections(after=_LOOK)
        found = []
        for identifier in message_ids:
            message, since = self._sent.get(identifier, (None, ""))
            if message and connected.get(message.metadata.dst_node_id, since) != since:
                error = Error(ErrorCode.NODE_UNAVAILABLE, "The node was connected anew.")
                found.append(Message(error, reply_to=message))
        for lost in found:
            del self._sent[lost.metadata.reply_to_message_id]
        return found

    def _is_reply_lost(self) -> bool:
        """Whether nobody will send the rest of the one reply that is being pulled."""
        connected = self._connections(after=_LOOK)
        sent = [self._sent[each] for each in self._asked if each in self._sent]
        return len(sent) == 1 and all(
            connected.get(message.metadata.dst_node_id, since) != since for message, since in sent
        )

    def _connections(self, *, after: float) -> Mapping[int, str]:
        """Return since when each node is connected, as it was at most so many seconds ago."""
        if time.monotonic() - self._looked > after:
            self._connected = {node.node_id: node.last_activated_at for node in self.get_nodes()}
            self._looked = time.monotonic()
        return self._connected

    def get_node_ids(self) -> Iterable[int]:
        self._still_wanted()
        return super().get_node_ids()


class _Impatient:
    """Flower's client, which waits for a part of a reply only as long as it may come.

    Args:
        client: of the SuperLink's runtime API.
        given_up: whether it may not; called from several threads.
    """

    def __init__(self, client: RuntimeHttpClient, *, given_up: Callable[[], bool]) -> None:
        self._client, self._given_up = client, given_up

    def __getattr__(self, name: str) -> object:
        return getattr(self._client, name)

    def PullObject(self, request: PullObjectRequest) -> PullObjectResponse:  # noqa: N802 - Flower's
        response = self._client.PullObject(request)
        if not response.object_available and self._given_up():
            raise ObjectPullError(request.object_id, "its node was connected anew")
        return response


@contextmanager
def carried(
    endpoint: Endpoint, token: str, *, still_wanted: Callable[[], None]
) -> Iterator[SuperLinkGrid]:
    """Yield a grid that carries the messages of the Flower run whose ServerApp's task this is.

    When the block ends, so does the Flower run: with an error, as failed.

    Raises:
        httpx.HTTPError: the SuperLink refuses.
    """
    client = endpoint.client(token)
    status, details = SubStatus.FAILED, "The coordinator stopped."
    try:
        given = client.PullTaskInput(PullTaskInputRequest())
        run: Run = run_from_proto(given.run)
        # Flower builds messages only inside a task, and a process has one at a time.
        TaskIdentity.task_id, TaskIdentity.run_id = given.task_id, run.run_id
        TaskIdentity.node_id = given.context.node_id
        grid = SuperLinkGrid(endpoint, token, still_wanted)
        grid.set_run(run)
        try:
            with beating(client):
                yield grid
            status, details = SubStatus.COMPLETED, ""
        finally:
            grid.close()
    finally:
        _end(client, PushTaskOutputRequest(sub_status=status, details=details))


def _end(client: RuntimeHttpClient, request: PushTaskOutputRequest) -> None:
    """Say how it ended; a SuperLink that has gone, or has given the task up, needs no telling."""
    with closing(client), suppress(httpx.HTTPError):
        client.PushTaskOutput(request)
