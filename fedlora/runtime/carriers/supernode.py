"""A deployed site's end of the carrier: instructions from the SuperNode, and replies to it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
from flwr.app import Context, Message
from flwr.common.constant import SubStatus
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime.run_clientapp import (
    pull_task_input,
    push_message,
    push_task_output,
)

from fedlora.errors import RunError
from fedlora.runtime.carriers.tasks import Endpoint, beating


@dataclass(frozen=True)
class Instruction:
    """A message from the aggregator, which waits for its reply."""

    message: Message
    context: Context
    _client: RuntimeHttpClient

    def reply(self, message: Message) -> None:
        """Hand the reply to the SuperNode, byte for byte as the gate made it.

        Raises:
            httpx.ConnectError: the SuperNode has gone.
            RunError: it has a part of the reply at most, for the rest of which it will wait.
        """
        try:
            push_message(self._client, message, self.context)
            push_task_output(self._client, self.context, SubStatus.COMPLETED, "")
        except httpx.ConnectError:
            raise
        except httpx.HTTPError as error:
            raise RunError(
                f"The SuperNode did not take an answer ({error!r}). Start both anew: the answer is "
                "in the outbox."
            ) from error


@contextmanager
def next_instruction(endpoint: Endpoint) -> Iterator[Instruction | None]:
    """Yield the oldest instruction that waits, or none; the task lives as long as the block.

    The app bundle that came with it is dropped unread.

    Raises:
        httpx.HTTPError: the SuperNode is not there.
    """
    token = endpoint.acquire("flwr-clientapp")
    if token is None:
        yield None
        return
    client = endpoint.client(token)
    try:
        message, context, _, _ = pull_task_input(client)
        with beating(client):
            yield Instruction(message, context, client)
    finally:
        client.close()
