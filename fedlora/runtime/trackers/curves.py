"""A run's curves in its trackers: each point once, and no trouble of a tracker is the run's."""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from fedlora import atomic
from fedlora.runtime.processes import log
from fedlora.runtime.trackers.tracker import Tracker

_CREDENTIALS = re.compile(r"//[^/@\s]*@")
"""In an address that an error's text quotes."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What is remembered of a tracker between two starts."""

    run: str = ""
    """What it calls the run."""
    after: int = -1
    """The last step that it was given."""


class Curves:
    """Copies what a run measures to its trackers.

    Guarantees:
        - Each tracker gets a step once, however often the run is stopped and resumed. (If the
          process is killed between noting a step and giving it, not at all.)
        - Nothing that a tracker raises gets out: it is logged, and that tracker gets no more until
          the run is resumed. Then it gets what it lacks.

    Args:
        trackers: by name.
        memory: file in which to note how far each has come.
    """

    def __init__(self, trackers: Mapping[str, Tracker], memory: Path) -> None:
        self._trackers = dict(trackers)
        self._memory = memory
        self._kept = _read(memory)

    def begin(self) -> None:
        """Begin with all trackers, or go on after a stop."""

        def begin(name: str, tracker: Tracker) -> None:
            kept = self._kept.get(name, Kept())
            self._keep(name, Kept(run=tracker.begin(kept.run), after=kept.after))

        self._each(begin)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Give a step to the trackers that lack it; what is not finite has no place in a curve."""
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}

        def give(name: str, tracker: Tracker) -> None:
            kept = self._kept[name]
            if step > kept.after:
                self._keep(name, Kept(run=kept.run, after=step))
                try:
                    tracker.log(step, finite)
                except Exception:
                    self._keep(name, kept)
                    raise

        self._each(give)

    def end(self, *, complete: bool) -> None:
        """Close the run in all trackers."""
        self._each(lambda _, tracker: tracker.end(complete=complete))

    def _each(self, act: Callable[[str, Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                act(name, tracker)
            except Exception as error:  # noqa: BLE001 - whatever its library or network provokes
                del self._trackers[name]
                reason = _CREDENTIALS.sub("//", f"{type(error).__name__}: {error}")
                log.warn(f"The tracker {name} failed, and the run goes on without it: {reason}")

    def _keep(self, name: str, kept: Kept) -> None:
        self._kept[name] = kept
        text = json.dumps({name: asdict(each) for name, each in self._kept.items()})
        atomic.write_file(self._memory, text)


@contextmanager
def open_curves(trackers: Mapping[str, Tracker], memory: Path) -> Iterator[Curves]:
    """Return the curves of a run, which are closed at the end of the block."""
    curves, complete = Curves(trackers, memory), False
    curves.begin()
    try:
        yield curves
        complete = True
    finally:
        curves.end(complete=complete)


def _read(memory: Path) -> dict[str, Kept]:
    """Return what is remembered; what is damaged says nothing that the run needs."""
    try:
        kept = json.loads(memory.read_text(encoding="utf-8"))
        return {name: Kept(**each) for name, each in kept.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
