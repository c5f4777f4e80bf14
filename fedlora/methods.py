"""The methods of aggregation, and the facts of each that decide what it can be combined with."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fedlora.tensors import WHOLE

Method = Literal["product", "average", "freeze-a", "alternate", "refresh", "share-a"]
OfflineMethod = Literal["product", "average", "concat"]
Robust = Literal[
    "none",
    "norm-bound",
    "multi-krum",
    "geometric-median",
    "cosine-filter",
    "median",
    "trimmed-mean",
]
ServerOptimizer = Literal["sgd", "adam", "yogi"]


@dataclass(frozen=True, kw_only=True)
class MethodFacts:
    """What a method trains and sends, and what holds for its round's update."""

    trains: tuple[str, ...] = ("AB",)
    """The factors that clients train, by round in turn."""
    personal: str = ""
    """Factors that are trained, but never leave their site."""
    plain_sum: bool
    """The round's update is a weighted sum of what the clients send, value by value."""
    exact: bool
    """It is the weighted mean of the clients' products B·A, up to a cut of the rank."""
    mixed_ranks: bool = False
    """Sites may train other ranks than the recipe's."""
    turns: bool = False
    """The factors come out of each round in another gauge."""
    fixed_gauge: bool = False
    """One factor never changes, so that the other's coordinates mean the same in every round."""

    def trained(self, number: int) -> tuple[str, ...]:
        """Return the kinds of tensors that clients train in round ``number`` (from 1).

        What is no factor of a product is among them, whatever the method.
        """
        return (*self.turn(number), *WHOLE)

    def turn(self, number: int) -> str:
        """Return the factors that are trained in round ``number``, such as ``AB``."""
        return self.trains[(number - 1) % len(self.trains)]

    def sent(self, number: int) -> tuple[str, ...]:
        """Return the kinds of tensors that clients send in round ``number`` (from 1)."""
        return tuple(kind for kind in self.trained(number) if kind not in self.personal)


METHODS: Mapping[Method, MethodFacts] = {
    "product": MethodFacts(plain_sum=False, exact=True, mixed_ranks=True, turns=True),
    "average": MethodFacts(plain_sum=True, exact=False),
    "freeze-a": MethodFacts(trains=("B",), plain_sum=True, exact=True, fixed_gauge=True),
    "alternate": MethodFacts(trains=("B", "A"), plain_sum=True, exact=True),
    "refresh": MethodFacts(trains=("B",), plain_sum=True, exact=True, turns=True),
    "share-a": MethodFacts(personal="B", plain_sum=True, exact=False),
}

COORDINATE_WISE: frozenset[Robust] = frozenset({"median", "trimmed-mean"})
"""Rules that choose each value on its own instead of weighing clients."""
