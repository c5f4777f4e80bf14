"""Who watches a site's steps. What a step says is not private: it is for the site's own host."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

StepObserver = Callable[[int, float], None]
"""Is told the steps of the whole training that are taken, and the loss of the last."""

_observer = ContextVar[StepObserver | None]("observer", default=None)


@contextmanager
def watching(observer: StepObserver) -> Iterator[None]:
    """Let the steps of rounds inside the block be watched."""
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)


def watched(*, first_step: int) -> StepObserver | None:
    """Return what is told each step of a round; None where nobody watches.

    Args:
        first_step: steps of the whole training before the round.
    """
    observer = _observer.get()
    if observer is None:
        return None
    return lambda taken, loss: observer(first_step + taken, loss)
