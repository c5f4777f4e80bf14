"""The conversation with the sites: who they are, and which site a reply is from."""

import time
from itertools import pairwise

import pytest
from flwr.app import Context, Error, Message, MessageType
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from fedlora.errors import RunError
from fedlora.recipe import Recipe
from fedlora.runtime import records
from fedlora.runtime.aggregator.exchange import Exchange
from fedlora.runtime.carriers.in_process import InProcessGrid

TASK = records.Task(recipe="", run="demo-1", round=0).to_record()


def exchange_with(*names: str, needed: int | None = None) -> Exchange:
    """Return an exchange over one node for each name, in which a node called ``!`` fails."""
    app = ClientApp()

    @app.query()
    def introduce(message: Message, context: Context) -> Message:
        name = names[context.node_id - 1]
        if name == "!":
            raise RuntimeError("no data here")
        return Message(records.introduction(name), reply_to=message)

    size = needed or len(names)
    recipe = Recipe.from_yaml(
        f"{{datasets: [{{path: x}}], privacy: {{unit: none}}, "
        f"federation: {{sites: {len(names)}, cohort_size: {size}}}}}"
    )
    return Exchange(InProcessGrid(app, clients=len(names)), recipe)


@pytest.mark.parametrize("names", [("north", "south"), ("2", "1"), ("2", "3", "1")])
def test_sites_are_met_by_name(names):
    """Also when their names look like the numbers of other nodes; instructions reach the right."""
    exchange = exchange_with(*names)
    exchange.meet(TASK)
    assert exchange.sites == tuple(sorted(names))
    messages = exchange.instructions(names, MessageType.QUERY, TASK)
    replies = {exchange.sender(reply): reply for reply in exchange.send(messages)}
    assert {site: records.site_name_of(reply.content) for site, reply in replies.items()} == {
        site: site for site in names
    }


def test_replies_are_pulled_one_by_one(monkeypatch):
    """A grid that has many ready must not put all of them into memory."""
    asked, pull = [], InProcessGrid.pull_messages

    def watched(self, message_ids):
        asked.append(list(message_ids))
        return pull(self, message_ids)

    monkeypatch.setattr(InProcessGrid, "pull_messages", watched)
    exchange_with("north", "south", "west").meet(TASK)
    assert [len(identifiers) for identifiers in asked] == [1, 1, 1]


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("north", "north"), "node 2: it calls itself north, as another node does"),
        (("north", "../../north"), "node 2: The site calls itself '../../north'"),
        (("north", "!"), "node 2: RuntimeError: no data here"),
    ],
)
def test_a_node_that_is_no_site_is_left_out_with_its_reason(names, says):
    """One bad node is left out; below a cohort, the error gives the reason."""
    exchange = exchange_with(*names, needed=1)
    exchange.meet(TASK)
    assert exchange.sites == ("north",)
    with pytest.raises(RunError, match="1 sites answered, but a cohort is 2") as caught:
        exchange_with(*names).meet(TASK)
    assert says in str(caught.value)


def test_an_error_reply_is_known_by_the_message_that_it_answers():
    """Flower's error replies name a wrong source node."""
    exchange = exchange_with("north", "south")
    exchange.meet(TASK)
    messages = exchange.instructions(["south"], MessageType.TRAIN, TASK)  # none handles it
    (reply,) = exchange.send(messages)
    assert reply.has_error()
    assert exchange.sender(reply) == "south"


class Lossy(InProcessGrid):
    """Loses each site's first message, as a link does whose other end has been killed."""

    def __init__(self, app: ClientApp, *, clients: int) -> None:
        super().__init__(app, clients=clients)
        self.lost: set[int] = set()

    def pull_messages(self, message_ids):
        for identifier in message_ids:
            message = self._waiting.get(identifier)
            if message and message.metadata.dst_node_id not in self.lost:
                self.lost.add(message.metadata.dst_node_id)
                error = Error(ErrorCode.NODE_UNAVAILABLE, "gone")
                return [Message(error, reply_to=self._waiting.pop(identifier))]
        return super().pull_messages(message_ids)


def lossy_exchange() -> Exchange:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(records.introduction(f"node-{context.node_id}"), reply_to=message)

    recipe = Recipe.from_yaml(
        "{datasets: [{path: x, site: north}, {path: x, site: south}], privacy: {unit: none}}"
    )
    return Exchange(Lossy(app, clients=2), recipe, identities=lambda: {2: "north", 1: "south"})


def test_an_instruction_that_was_lost_is_sent_again(monkeypatch):
    """What the carrier lost is no answer of the site; each site's answer comes once."""
    monkeypatch.setattr("fedlora.runtime.aggregator.exchange._RESEND", 0.0)
    exchange = lossy_exchange()
    exchange.meet(TASK)

    def instructions(*sites: str) -> list[Message]:
        return exchange.instructions(sites, MessageType.TRAIN, TASK)

    replies = exchange.send(instructions("north", "south"), again=instructions)
    names = {exchange.sender(r): records.site_name_of(r.content) for r in replies}
    assert names == {"north": "node-2", "south": "node-1"}


def test_a_loss_without_a_way_to_repeat_is_the_reply():
    """It is known whose message was lost."""
    exchange = lossy_exchange()
    exchange.meet(TASK)
    replies = list(exchange.send(exchange.instructions(["north"], MessageType.TRAIN, TASK)))
    assert [(exchange.sender(r), r.has_error()) for r in replies] == [("north", True)]


def test_who_a_node_is_says_the_directory_alone():
    """Where nodes authenticate themselves they are not asked; strangers are named."""
    exchange = lossy_exchange()
    exchange._identities = lambda: {2: "north", 7: "elsewhere"}
    with pytest.raises(RunError, match="1 sites answered, but a cohort is 2") as caught:
        exchange.meet(TASK)
    assert "south: not admitted" in str(caught.value)
    assert exchange.sites == ("north",)


class Reluctant(InProcessGrid):
    """Says of the first three messages that the site may answer later; notes when each was sent."""

    def __init__(self, app: ClientApp, *, clients: int) -> None:
        super().__init__(app, clients=clients)
        self.sent: list[float] = []

    def push_messages(self, messages):
        self.sent.append(time.monotonic())
        return super().push_messages(messages)

    def pull_messages(self, message_ids):
        if len(self.sent) > 3:
            return super().pull_messages(message_ids)
        error = Error(ErrorCode.MOD_FAILED_PRECONDITION, "not yet")
        return [Message(error, reply_to=self._waiting.pop(each)) for each in message_ids]


def test_a_site_that_will_answer_later_is_asked_ever_less_often(monkeypatch):
    """Each question takes the adapter there again."""
    monkeypatch.setattr("fedlora.runtime.aggregator.exchange._RESEND", 0.3)
    monkeypatch.setattr("fedlora.runtime.aggregator.exchange._LONGEST_RESEND", 0.6)
    monkeypatch.setattr("fedlora.runtime.aggregator.exchange._POLL", 0.01)
    grid = Reluctant(app := ClientApp(), clients=1)

    @app.train()
    def train(message: Message, _: Context) -> Message:
        return Message(records.introduction("north"), reply_to=message)

    recipe = Recipe.from_yaml("{datasets: [{path: x, site: north}], privacy: {unit: none}}")
    exchange = Exchange(grid, recipe, identities=lambda: {1: "north"})
    exchange.meet(TASK)

    def instructions(*_: str) -> list[Message]:
        return exchange.instructions(["north"], MessageType.TRAIN, TASK)

    (reply,) = exchange.send(instructions(), again=instructions)
    assert not reply.has_error()
    waited = [later - earlier for earlier, later in pairwise(grid.sent)]
    assert all(took >= least for took, least in zip(waited, (0.3, 0.6, 0.6), strict=True))


def test_whom_a_round_waits_for_is_told(monkeypatch):
    """With the reason, so that an operator can see why nothing moves; and once it has answered."""
    monkeypatch.setattr("fedlora.runtime.aggregator.exchange._RESEND", 0.0)
    exchange, told = lossy_exchange(), []
    exchange.meet(TASK)

    def instructions(*sites: str) -> list[Message]:
        return exchange.instructions(sites, MessageType.TRAIN, TASK)

    replies = exchange.send(
        instructions("north"), again=instructions, awaited=lambda *facts: told.append(facts)
    )
    assert len(list(replies)) == 1
    assert told == [("north", "gone"), ("north", None)]


class Late(InProcessGrid):
    """Has no answer the first two times that it is asked for one."""

    looks = 0

    def pull_messages(self, message_ids):
        self.looks += 1
        return super().pull_messages(message_ids) if self.looks > 2 else []


def test_who_is_silent_for_long_is_told_once(monkeypatch):
    """A site that is away looks like one that trains: both are named."""
    monkeypatch.setattr("fedlora.runtime.aggregator.exchange._SILENCE", 0.0)
    monkeypatch.setattr("fedlora.runtime.aggregator.exchange._POLL", 0.01)
    grid = Late(app := ClientApp(), clients=1)

    @app.train()
    def train(message: Message, _: Context) -> Message:
        return Message(records.introduction("north"), reply_to=message)

    recipe = Recipe.from_yaml("{datasets: [{path: x, site: north}], privacy: {unit: none}}")
    exchange, told = Exchange(grid, recipe, identities=lambda: {1: "north"}), []
    exchange.meet(TASK)
    sent = exchange.instructions(["north"], MessageType.TRAIN, TASK)
    list(exchange.send(sent, awaited=lambda *facts: told.append(facts)))

    assert told == [("north", "No answer for 0 s: it trains, or it is away."), ("north", None)]


class FakeTime:
    """Passes only while somebody sleeps."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class OneFails(InProcessGrid):
    """Node 1 fails at once whenever it is asked, node 2 the first time, after a second."""

    def __init__(self, app: ClientApp, *, clients: int, clock: FakeTime) -> None:
        super().__init__(app, clients=clients)
        self.clock = clock
        self.asked: list[int] = []

    def push_messages(self, messages):
        messages = list(messages)
        self.asked += [message.metadata.dst_node_id for message in messages]
        return super().push_messages(messages)

    def pull_messages(self, message_ids):
        (identifier,) = message_ids
        node = self._waiting[identifier].metadata.dst_node_id
        if node == 2 and self.asked.count(2) > 1:
            return super().pull_messages(message_ids)
        if node == 2 and self.clock.now < 1:
            return []
        error = Error(ErrorCode.CLIENT_APP_CRASHED, "again")
        return [Message(error, reply_to=self._waiting.pop(identifier))]


def test_a_site_that_keeps_failing_does_not_keep_others_from_being_asked_again(monkeypatch):
    """Each waits for its own time alone, so that one bad site costs the others nothing."""
    clock = FakeTime()
    monkeypatch.setattr("fedlora.runtime.aggregator.exchange.time", clock)
    grid = OneFails(app := ClientApp(), clients=2, clock=clock)

    @app.train()
    def train(message: Message, _: Context) -> Message:
        return Message(records.introduction("south"), reply_to=message)

    recipe = Recipe.from_yaml(
        "{datasets: [{path: x, site: north}, {path: x, site: south}], privacy: {unit: none}}"
    )
    exchange = Exchange(grid, recipe, identities=lambda: {1: "north", 2: "south"})
    exchange.meet(TASK)

    def instructions(*sites: str) -> list[Message]:
        return exchange.instructions(sites, MessageType.TRAIN, TASK)

    replies = exchange.send(instructions("north", "south"), again=instructions)
    assert exchange.sender(next(replies)) == "south"
    assert grid.asked == [1, 2, 1, 2]
    assert clock.now < 7
