"""A Flower ``Grid`` without a network: every client runs in this process, one after another.

A client runs when its reply is pulled, so one resident base model serves all of them and the
server folds each update before the next one exists.
"""

import traceback
from collections.abc import Iterable

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import NUM_PARTITIONS_KEY, PARTITION_ID_KEY, ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedlora.errors import FedloraError

_SERVER_NODE = 0


class InProcessGrid(Grid):
    """Carries messages to ``clients`` nodes that all run ``app``."""

    def __init__(self, app: ClientApp, *, clients: int) -> None:
        self._app = app
        self._run = Run.create_empty(run_id=1)
        self._contexts = {
            index + 1: Context(
                run_id=self._run.run_id,
                node_id=index + 1,
                node_config={PARTITION_ID_KEY: index, NUM_PARTITIONS_KEY: clients},
                state=RecordDict(),
                run_config={},
            )
            for index in range(clients)
        }
        self._waiting: dict[str, Message] = {}
        self._sent = 0
        # Flower builds a message only inside a task; this is the one place that pretends to be one.
        TaskIdentity.task_id, TaskIdentity.node_id = 1, _SERVER_NODE
        TaskIdentity.run_id = self._run.run_id

    @property
    def run(self) -> Run:
        """The Flower run that the messages belong to."""
        return self._run

    def set_run(self, run: Run) -> None:
        """Set the Flower run that the messages belong to."""
        self._run = run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a new message to a node."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Return the node ids, all of which are always connected."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue the messages and return their ids."""
        identifiers = []
        for message in messages:
            self._sent += 1
            identifier = f"message-{self._sent}"
            # Flower's own links set the id in the same way: there is no public setter.
            message.metadata.__dict__["_message_id"] = identifier
            self._waiting[identifier] = message
            identifiers.append(identifier)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Run the client of the first queued message among ``message_ids``; return its reply."""
        for identifier in message_ids:
            if identifier in self._waiting:
                return [self._answer(self._waiting.pop(identifier))]
        return []

    def send_and_receive(
        self,
        messages: Iterable[Message],
        *,
        timeout: float | None = None,
    ) -> Iterable[Message]:
        """Yield the reply to each message in turn."""
        for identifier in self.push_messages(messages):
            yield from self.pull_messages([identifier])

    def _answer(self, message: Message) -> Message:
        try:
            return self._app(message, self._contexts[message.metadata.dst_node_id])
        except FedloraError as error:
            return _failed(message, str(error))
        except Exception as error:  # noqa: BLE001 - as on a real node, a failing client is a reply
            return _failed(message, "".join(traceback.format_exception_only(error)).strip())


def _failed(message: Message, reason: str) -> Message:
    return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
