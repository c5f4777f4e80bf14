"""How a round's updates become one: a method a file, and the server optimiser on top."""

from collections.abc import Callable, Mapping

from fedlora.aggregation.aggregator import Aggregator
from fedlora.aggregation.average import Average
from fedlora.aggregation.server_optimizer import PlainOptimizer, ServerOptimizer
from fedlora.recipe import Method

__all__ = ["Aggregator", "Average", "PlainOptimizer", "ServerOptimizer", "new_aggregator"]

_METHODS: Mapping[Method, Callable[[], Aggregator]] = {"average": Average}


def new_aggregator(method: Method) -> Aggregator:
    """Return a new aggregator for the method that a recipe names."""
    return _METHODS[method]()
