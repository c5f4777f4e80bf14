"""Hostile clients: attacks from the literature, and the grid that carries them.

Attackers train like everyone, answer last, know what all honest clients sent, and then send
something else, well-formed and encoded as the gate would.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

import torch
from flwr.app import Message
from torch import Tensor

from fedlora import products
from fedlora.adapter import AdapterState, AdapterUpdate, InspectedUpdate
from fedlora.aggregation import new_aggregator, new_optimizer
from fedlora.recipe import Recipe
from fedlora.runtime import records
from fedlora.runtime.carriers.in_process import InProcessGrid
from fedlora.runtime.run_folder import RunFolder
from fedlora.runtime.site.client import app
from fedlora.wire.codec import Envelope, decode_update, encode_update

_FLIP = -3
_GAUGE = 100


@dataclass(frozen=True, kw_only=True)
class Sight:
    """What an attacker sees."""

    received: AdapterState
    own: AdapterUpdate
    """What it would send if it were honest."""
    honest: Sequence[AdapterUpdate]
    clients: int


Attack = Callable[[Sight], Tensor]
"""Returns the values that an attacker sends, in the place of those of ``own``."""


def honestly(sight: Sight) -> Tensor:
    """Send what was trained."""
    return sight.own.values


def sign_flip(sight: Sight) -> Tensor:
    """Send the increment three times as large, in the opposite direction."""
    return _FLIP * sight.own.values


def little_is_enough(sight: Sight) -> Tensor:
    """Send the honest mean less as many standard deviations as honest clients still have.

    With n clients and f attackers, ``s = ⌊n/2⌋ + 1 - f`` honest ones must lie farther out to make
    a majority: ``z`` is the normal quantile of ``(n - f - s) / (n - f)``.

    References:
        Baruch et al. 2019, arXiv:1902.06156, algorithm 3.
    """
    honest, clients = len(sight.honest), sight.clients
    supporters = clients // 2 + 1 - (clients - honest)
    deviations = NormalDist().inv_cdf((honest - supporters) / honest)
    values = torch.stack([update.values for update in sight.honest])
    return values.mean(dim=0) - deviations * values.std(dim=0)


def gauge(sight: Sight) -> Tensor:
    """Send the honest product as 100·B and A/100: nothing is changed but the factors."""
    trained = sight.received.plus(sight.own)
    for tensor, values in trained.factors():
        values.mul_(_GAUGE if tensor.factor == "B" else 1 / _GAUGE)
    return trained.minus(sight.received)


ATTACKS: Mapping[str, Attack] = {
    "none": honestly,
    "sign-flip": sign_flip,
    "ALIE": little_is_enough,
    "gauge": gauge,
}


@dataclass(frozen=True)
class Sent:
    """What the honest clients of a round received and sent."""

    received: AdapterState
    updates: list[AdapterUpdate] = field(default_factory=list)


class HostileGrid(InProcessGrid):
    """Carries messages as usual, but the last ``attackers`` sites are hostile."""

    def __init__(self, run: RunFolder, *, attack: Attack, attackers: int) -> None:
        self._folder, self._recipe, self._attack = run, run.recipe(), attack
        self._clients = len(self._recipe.site_names)
        self._honest = self._clients - attackers
        self.sent: dict[int, Sent] = {}
        super().__init__(app, clients=self._clients)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the next reply; an attacker's is altered, and not there before all others are."""
        asked = {i: self._waiting[i] for i in message_ids if i in self._waiting}
        if any(map(self._is_honest, self._waiting.values())):
            asked = {i: message for i, message in asked.items() if self._is_honest(message)}
        for reply in super().pull_messages(asked):
            if reply.metadata.message_type == "train" and not reply.has_error():
                self._intercept(reply)
            yield reply

    def _is_honest(self, message: Message) -> bool:
        return message.metadata.dst_node_id <= self._honest

    def _intercept(self, reply: Message) -> None:
        """Remember what an honest client sent; replace what an attacker sent."""
        number, node = int(reply.metadata.group_id), reply.metadata.src_node_id
        if number not in self.sent:
            self.sent[number] = Sent(self._folder.load().adapter)
        sent, wire = self.sent[number], self._recipe.wire
        envelope = records.envelope_of_update(
            Envelope(spec=self._folder.spec(), run=self._folder.name, round=number),
            self._recipe,
            self._recipe.site_names[node - 1],
        )
        update = decode_update(
            records.unpack(reply.content),
            envelope,
            codec=wire.codec,
            compress=wire.compress,
            max_bytes=wire.max_bytes,
        )
        if node <= self._honest:
            sent.updates.append(update)
            return
        sight = Sight(
            received=sent.received, own=update, honest=sent.updates, clients=self._clients
        )
        forged = InspectedUpdate(
            spec=update.spec, values=self._attack(sight), num_examples=update.num_examples
        )
        payload = encode_update(forged, envelope, codec=wire.codec, compress=wire.compress)
        reply.content = records.reply(records.metrics_of(reply.content), payload=payload)


def first_error(sent: Mapping[int, Sent], recipe: Recipe) -> float:
    """Return how far the first round's change is from what it should be, in product space.

    What it should be is what the method without a rule makes of the honest updates alone. The
    distance is relative to the norm of that; not a number when there was no second round.
    """
    if not {1, 2} <= sent.keys():
        return math.nan
    federation = recipe.federation.model_copy(update={"robust": "none"})
    aggregator = new_aggregator(federation, attackers=0)
    first, outcome = sent[1], sent[2].received
    aggregator.begin(first.received)
    for update in first.updates:
        aggregator.add(update, float(update.num_examples))
    wanted = new_optimizer(federation).step(first.received, aggregator.finish()).adapter
    return products.distance(outcome, wanted) / products.norm(wanted)
