"""Two loops that take their steps in turn, in one process: what slows the machine slows both."""

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Condition

import torch


class Turns:
    """Lets loops, each in a thread of its own, take one step after another in turn.

    A loop that has ended, or failed, is waited for no more.
    """

    def __init__(self, names: list[str]) -> None:
        self._order = list(names)
        self._changed = Condition()
        self.seconds: dict[str, list[float]] = {name: [] for name in names}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Wait for the turn, and measure one step of a loop."""
        with self._changed:
            self._changed.wait_for(lambda: self._order[0] == name)
        started = _now()
        yield
        self.seconds[name].append(_now() - started)
        with self._changed:
            self._order.append(self._order.pop(0))
            self._changed.notify_all()

    def leave(self, name: str) -> None:
        """Take no more turns."""
        with self._changed:
            self._order.remove(name)
            self._changed.notify_all()


def in_turn(loops: Mapping[str, Callable[[Turns], object]]) -> dict[str, list[float]]:
    """Return the seconds of each loop's steps; their first is a warm-up and left out.

    Args:
        loops: by name; each takes its steps within ``turns.step(name)``.
    """
    turns = Turns(list(loops))

    def run(name: str) -> None:
        try:
            loops[name](turns)
        finally:
            turns.leave(name)

    with ThreadPoolExecutor(len(loops)) as pool:
        for done in [pool.submit(run, name) for name in loops]:
            done.result()
    return {name: seconds[1:] for name, seconds in turns.seconds.items()}


def _now() -> float:
    """Return the time when all that was asked of a graphics card is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
