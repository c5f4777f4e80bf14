"""The conversation with the connected sites: who they are, and replies as they arrive."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from textwrap import shorten

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from fedlora.errors import FedloraError, RunError, WireError
from fedlora.recipe import Recipe
from fedlora.runtime import records

_POLL = 0.2
"""Seconds between looks for what is not there yet."""

_RESEND, _LONGEST_RESEND = 5.0, 60.0
"""Seconds before an instruction that was lost on its way is sent again; doubled up to the second
each time that the site says that it may answer later, since each takes the adapter there again."""

_SILENCE = 60.0
"""Seconds after which those who have not answered are named."""

_LONGEST_REASON = 300
"""Letters that are kept of what a client says of its failure."""

_LATER = ErrorCode.MOD_FAILED_PRECONDITION
"""What a site's gate says if it may answer later."""

_LOST = frozenset(
    {
        ErrorCode.MESSAGE_UNAVAILABLE,
        ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
        ErrorCode.NODE_UNAVAILABLE,
        ErrorCode.CLIENT_APP_CRASHED,
        _LATER,
    }
)
"""Errors that are not a site's last word."""

Identities = Callable[[], Mapping[int, str]]
"""Who the nodes are whose keys the aggregator's operator has admitted: node id to site."""

Tell = Callable[[str, RecordDict], None]
"""Adds to the content of an instruction what is for one site alone."""

Again = Callable[[str], Iterable[Message]]
"""Makes the instruction to a site anew."""

Awaited = Callable[[str, str | None], None]
"""Is told which site did not answer for now, and why; or None, once it has."""


class Exchange:
    """Messages to sites by name over a Flower grid, and their replies one at a time.

    Args:
        grid: carries the messages.
        recipe: of the run.
        identities: who the nodes are, where they authenticate themselves; then what a node calls
            itself does not count, and a site that is not connected yet is waited for in each round
            as one that has not answered. Without it, nodes are asked.
    """

    def __init__(self, grid: Grid, recipe: Recipe, *, identities: Identities | None = None) -> None:
        self._grid = grid
        self._recipe = recipe
        self._identities = identities
        self._nodes: dict[str, int] = {}
        self._waiting: dict[str, str] = {}

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites that answered, sorted."""
        return tuple(sorted(self._nodes))

    def meet(self, task: ConfigRecord) -> None:
        """Wait for the clients to connect; ask each for its site's name, unless that is known.

        Raises:
            RunError: fewer sites than a cohort needs answered within ``federation.node_timeout``.
        """
        nodes = self._connected()
        if self._identities is None:
            self._ask(nodes, task)
            return
        self.refresh()
        missing = sorted(site for site, node in self._nodes.items() if node not in nodes)
        strangers = sorted(set(self._recipe.site_names) - self._nodes.keys())
        reasons = [f"\n  {site}: not connected" for site in missing]
        reasons += [f"\n  {site}: not admitted" for site in strangers]
        self._require_cohort(len(self._nodes) - len(missing), reasons)

    def refresh(self) -> None:
        """Learn who was admitted or revoked meanwhile, where that is known."""
        if self._identities is not None:
            wanted = self._recipe.site_names
            known = self._identities().items()
            self._nodes = {site: node for node, site in known if site in wanted}

    def _ask(self, nodes: Iterable[int], task: ConfigRecord) -> None:
        reasons = []
        met: dict[str, int] = {}
        self._nodes = {str(node): node for node in nodes}
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
        self._require_cohort(len(met), reasons)

    def _require_cohort(self, count: int, reasons: Iterable[str]) -> None:
        needed = self._recipe.cohort_size
        if count < needed:
            raise RunError(f"{count} sites answered, but a cohort is {needed}." + "".join(reasons))

    def instructions(
        self,
        sites: Iterable[str],
        message_type: str,
        task: ConfigRecord,
        *,
        arrays: ArrayRecord | None = None,
        tell: Tell = lambda _site, _content: None,
    ) -> list[Message]:
        """Return one instruction for each of the sites, with what ``tell`` adds for that one."""
        messages = []
        for site in sites:
            content = records.instruction(task, arrays)
            tell(site, content)
            group = str(task["round"])
            messages.append(Message(content, self._nodes[site], message_type, group_id=group))
        return messages

    def send(
        self,
        messages: Sequence[Message],
        *,
        again: Again | None = None,
        awaited: Awaited = lambda _site, _reason: None,
        timeout: float | None = None,
    ) -> Iterator[Message]:
        """Send the messages; return replies as they arrive, until all are there or too late.

        Args:
            messages: at most one to a site.
            again: makes an instruction anew when it, or who was to answer it, was lost. Without
                it, the loss is the site's reply.
            awaited: is told of each loss, of a long silence, and when that site has answered.
            timeout: seconds after which it is too late; by default ``federation.round_timeout``.
        """
        self._waiting = {}
        timeout = timeout or self._recipe.federation.round_timeout
        return self._replies(self._push(messages), again, awaited, timeout=timeout)

    def _push(self, messages: Sequence[Message]) -> list[str]:
        """Send messages; return the identifiers of those that were taken."""
        names = {node: site for site, node in self._nodes.items()}
        taken = {
            identifier: names[message.metadata.dst_node_id]
            for identifier, message in zip(
                self._grid.push_messages(messages), messages, strict=True
            )
            if identifier  # a grid gives none for a node that has gone
        }
        self._waiting |= taken
        return list(taken)

    def _replies(
        self, missing: list[str], again: Again | None, awaited: Awaited, *, timeout: float
    ) -> Iterator[Message]:
        """Yield replies; ``missing`` is in the order of sending, in which a cohort is folded."""
        deadline = time.monotonic() + timeout
        lost: dict[str, float] = {}  # sites whose instruction was lost, and when to send it again
        patience = _Patience(awaited)
        delays: dict[str, float] = defaultdict(lambda: _RESEND)
        while missing or lost:
            idle = True
            for identifier in tuple(missing):  # one by one: a grid holds all that it is asked for
                for reply in self._grid.pull_messages([identifier]):
                    missing.remove(identifier)
                    idle = False
                    if again and reply.has_error() and reply.error.code in _LOST:
                        site = self.sender(reply)
                        patience.lost(site, _reason(reply))
                        lost[site] = time.monotonic() + delays[site]
                        if reply.error.code == _LATER:
                            delays[site] = min(2 * delays[site], _LONGEST_RESEND)
                    else:
                        patience.answered(self.sender(reply))
                        yield reply
            patience.silent({self._waiting[identifier] for identifier in missing})
            if idle and time.monotonic() > deadline:
                return
            due = [site for site, when in lost.items() if when <= time.monotonic()]
            if again and due:
                pushed = self._push([message for site in due for message in again(site)])
                missing += pushed
                taken = {self._waiting[identifier] for identifier in pushed}
                later = dict.fromkeys(due, time.monotonic() + _RESEND)
                lost = {s: t for s, t in (lost | later).items() if s not in taken}
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


class _Patience:
    """Tells for whom a round waits, each once, and when it waits for them no longer."""

    def __init__(self, tell: Awaited) -> None:
        self._tell = tell
        self._ends = time.monotonic() + _SILENCE
        self._told: set[str] = set()

    def lost(self, site: str, reason: str) -> None:
        """Take note that an instruction or an answer was lost."""
        self._told.add(site)
        self._tell(site, reason)

    def answered(self, site: str) -> None:
        """Take note of an answer."""
        if site in self._told:
            self._told.remove(site)
            self._tell(site, None)

    def silent(self, sites: set[str]) -> None:
        """Take note of who has not answered, if that is long ago."""
        if time.monotonic() > self._ends:
            for site in sites - self._told:
                self.lost(site, f"No answer for {_SILENCE:g} s: it trains, or it is away.")


def content_of(reply: Message) -> RecordDict:
    """Return what a site replied.

    Raises:
        WireError: the reply is an error; the message is the site's own reason.
    """
    if reply.has_error():
        raise WireError(_reason(reply))
    return reply.content


def _reason(reply: Message) -> str:
    reason = reply.error.reason or f"The client failed (Flower code {reply.error.code})."
    return shorten(reason, _LONGEST_REASON, placeholder=" …")
