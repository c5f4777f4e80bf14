"""How a round's updates become one: a method a file, robust rules, and the server optimiser."""

from collections.abc import Callable, Mapping

from fedlora.aggregation.aggregator import Aggregator
from fedlora.aggregation.alternate import Alternate
from fedlora.aggregation.average import Average
from fedlora.aggregation.coordinate_wise import Median, TrimmedMean
from fedlora.aggregation.freeze_a import FreezeA
from fedlora.aggregation.product import Product
from fedlora.aggregation.refresh import Refresh
from fedlora.aggregation.robust import RULES, Rule, Vote
from fedlora.aggregation.server_optimizer import (
    Adaptive,
    FactorMomentum,
    ProductMomentum,
    ServerOptimizer,
    Step,
)
from fedlora.aggregation.share_a import ShareA
from fedlora.methods import Method
from fedlora.sections import Federation

__all__ = [
    "RULES",
    "Aggregator",
    "Rule",
    "ServerOptimizer",
    "Step",
    "Vote",
    "new_aggregator",
    "new_optimizer",
]

_METHODS: Mapping[Method, Callable[[], Aggregator]] = {
    "product": Product,
    "average": Average,
    "freeze-a": FreezeA,
    "alternate": Alternate,
    "refresh": FreezeA,
    "share-a": ShareA,
}


def new_aggregator(federation: Federation, *, attackers: int) -> Aggregator:
    """Return the aggregator that a recipe names.

    Args:
        federation: names the method and, if its values are chosen one by one, the robust rule.
        attackers: values that ``trimmed-mean`` drops at each end.
    """
    aggregator = _METHODS[federation.method]()
    if federation.robust == "median":
        aggregator = Median()
    elif federation.robust == "trimmed-mean":
        aggregator = TrimmedMean(attackers)
    return Refresh(aggregator) if federation.method == "refresh" else aggregator


def new_optimizer(federation: Federation) -> ServerOptimizer:
    """Return the server optimiser that a recipe names, in the space where it is exact."""
    rate, momentum = federation.server_learning_rate or 1.0, federation.server_momentum
    if federation.server_optimizer != "sgd":
        kind = federation.server_optimizer
        return Adaptive(kind, learning_rate=rate, momentum=momentum)
    one_factor = federation.facts.fixed_gauge or federation.facts.personal
    momentum_of = FactorMomentum if one_factor else ProductMomentum
    return momentum_of(learning_rate=rate, momentum=momentum)
