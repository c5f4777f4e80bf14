"""The conversation with the connected sites: who they are, and replies as they arrive."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from textwrap import shorten

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedlora.chained_file import Head
from fedlora.errors import FedloraError, RunError, WireError
from fedlora.recipe import Recipe
from fedlora.runtime import records

_POLL = 0.2
"""Seconds between looks for what is not there yet."""

_LONGEST_REASON = 300
"""Letters that are kept of what a client says of its failure."""


class Exchange:
    """Messages to sites by name over a Flower grid, and their replies one at a time."""

    def __init__(self, grid: Grid, recipe: Recipe) -> None:
        self._grid = grid
        self._recipe = recipe
        self._nodes: dict[str, int] = {}
        self._waiting: dict[str, str] = {}

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites that answered, sorted."""
        return tuple(sorted(self._nodes))

    def meet(self, task: ConfigRecord) -> None:
        """Wait for the clients to connect and ask each for its site's name.

        Raises:
            RunError: fewer sites than a cohort needs answered within ``federation.node_timeout``.
        """
        reasons = []
        met: dict[str, int] = {}
        self._nodes = {str(node): node for node in self._connected()}
        for reply in self.send(self.instructions(self.sites, MessageType.QUERY, task)):
            node = int(self.sender(reply))
            try:
                name = records.site_name_of(content_of(reply))
            except FedloraError as error:
                reasons.append(f"\n  node {node}: {error}")
                continue
            if name in met:
                reasons.append(f"\n  node {node}: it calls itself {name}, as another node does")
            else:
                met[name] = node
        self._nodes = met
        needed = self._recipe.cohort_size
        if len(self._nodes) < needed:
            raise RunError(
                f"{len(self._nodes)} sites answered, but a cohort is {needed}." + "".join(reasons)
            )

    def instructions(
        self,
        sites: Iterable[str],
        message_type: str,
        task: ConfigRecord,
        *,
        arrays: ArrayRecord | None = None,
        receipts: Mapping[str, Head] | None = None,
    ) -> list[Message]:
        """Return one instruction for each of the sites, with the receipt of its own ledger."""
        return [
            Message(
                records.instruction(task, arrays, receipt=(receipts or {}).get(site)),
                self._nodes[site],
                message_type,
                group_id=str(task["round"]),
            )
            for site in sites
        ]

    def send(self, messages: Sequence[Message]) -> Iterator[Message]:
        """Send the messages; return replies as they arrive, until all are there or too late."""
        names = {node: site for site, node in self._nodes.items()}
        identifiers = self._grid.push_messages(messages)
        self._waiting = {
            identifier: names[message.metadata.dst_node_id]
            for identifier, message in zip(identifiers, messages, strict=True)
            if identifier  # a grid gives none for a node that has gone
        }
        return self._replies()

    def _replies(self) -> Iterator[Message]:
        missing = list(self._waiting)  # in the order of sending, in which the cohort is folded
        deadline = time.monotonic() + self._recipe.federation.round_timeout
        while missing:
            idle = True
            for identifier in tuple(missing):  # one by one: a grid holds all that it is asked for
                for reply in self._grid.pull_messages([identifier]):
                    missing.remove(identifier)
                    idle = False
                    yield reply
            if idle and time.monotonic() > deadline:
                return
            if idle:
                time.sleep(_POLL)

    def sender(self, reply: Message) -> str:
        """Return the site that a reply is from.

        Flower's error replies name a wrong source node; the message they answer is right.
        """
        return self._waiting[reply.metadata.reply_to_message_id]

    def _connected(self) -> list[int]:
        wanted = len(self._recipe.site_names)
        deadline = time.monotonic() + self._recipe.federation.node_timeout
        while len(nodes := sorted(self._grid.get_node_ids())) < wanted:
            if time.monotonic() > deadline:
                break
            time.sleep(_POLL)
        return nodes


def content_of(reply: Message) -> RecordDict:
    """Return what a site replied.

    Raises:
        WireError: the reply is an error; the message is the site's own reason.
    """
    if reply.has_error():
        reason = reply.error.reason or f"The client failed (Flower code {reply.error.code})."
        raise WireError(shorten(reason, _LONGEST_REASON, placeholder=" …"))
    return reply.content
