"""The aggregator's end of the carrier in a deployment: a Flower run, played by this process.

Flower never resumes a run whose ServerApp died. So a Flower run is to us what carries messages for
a while: a fedlora run that goes on after a stop is carried by a new one.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress

import httpx
from flwr.app import Message
from flwr.common.constant import SubStatus
from flwr.common.serde import run_from_proto
from flwr.proto.runtime_pb2 import PullTaskInputRequest, PushTaskOutputRequest
from flwr.supercore.run import Run
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid

from fedlora.runtime.carriers.tasks import Endpoint, beating


class SuperLinkGrid(HttpGrid):
    """Flower's own grid, which asks between messages whether it is still wanted.

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

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self._still_wanted()
        return super().pull_messages(message_ids)

    def get_node_ids(self) -> Iterable[int]:
        self._still_wanted()
        return super().get_node_ids()


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
