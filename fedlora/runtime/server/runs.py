"""The runs of an aggregator: which are to be played, and where each stands.

Beside what every run folder holds::

    wanted         ``playing`` or ``stopped``: the operator's word
    standing.json  what the coordinator last did with the run, and why
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Self

from fedlora import atomic
from fedlora.errors import RunError
from fedlora.recipe import Recipe
from fedlora.runtime.aggregator.tracked import require_trackable
from fedlora.runtime.fixed_point import require_sums
from fedlora.runtime.lock import spec_of
from fedlora.runtime.run_folder import RunFolder

State = Literal["waiting", "playing", "paused", "stopped", "finished"]

_FIRST_PAUSE, _LONGEST_PAUSE = 5.0, 300.0
"""Seconds before a run that could not go on is tried again; doubled each time in vain."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a run stands."""

    state: State
    reason: str = ""
    """Why it pauses."""
    since: float = 0
    """Seconds since the epoch."""
    tries: int = 0
    """In vain, one after another, since a round was last committed."""
    rounds: int = 0
    """That were complete then."""

    @property
    def again(self) -> float:
        """When a paused run is tried again, in seconds since the epoch."""
        return self.since + min(_FIRST_PAUSE * 2.0 ** (self.tries - 1), _LONGEST_PAUSE)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what ``json`` of its fields was written to a file; a run just begun has none.

        One that is damaged holds nothing that the run needs: it goes on from its last checkpoint.
        """
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return cls(state="waiting")


class Runs:
    """The run folders of an aggregator.

    Args:
        folder: that holds them.
        clock: gives seconds since the epoch.
    """

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.folder = folder
        self._clock = clock

    def begin(self, recipe: Recipe) -> RunFolder:
        """Make the folder of a new run, which the coordinator plays when its turn comes.

        Raises:
            RecipeError: the recipe is not locked, or does not name its sites.
            RunError, RecipeError: as ``require_trackable``.
        RecipeError: there can be no such secure sums.
            StorageError: the folder cannot be written.
        """
        require_trackable(recipe)
        require_sums(recipe)
        run = RunFolder.create(recipe, spec_of(recipe), data={}, runs=self.folder)
        atomic.write_file(run.path / "wanted", "playing\n")
        return run

    def open(self, name: str) -> RunFolder:
        """Return a run by its name.

        Raises:
            RunError: there is none; those that there are, are named.
        """
        path = self.folder / name
        if Path(name).name != name or not (path / "recipe.yaml").is_file():
            known = ", ".join(run.name for run in self.all()) or "none"
            raise RunError(f"There is no run {name} in {self.folder}, only: {known}.")
        return RunFolder.open(path)

    def all(self) -> Sequence[RunFolder]:
        """Return the runs, oldest first."""
        found = self.folder.glob("[!.]*/recipe.yaml")
        paths = sorted(found, key=lambda path: (path.stat().st_mtime, path))
        return [RunFolder.open(path.parent) for path in paths]

    def want(self, run: RunFolder, wanted: Literal["playing", "stopped"]) -> None:
        """Say that a run is to be played, or not any more.

        Raises:
            StorageError: it cannot be written.
        """
        atomic.write_file(run.path / "wanted", f"{wanted}\n")
        state = self.standing(run).state
        if wanted == "playing" and state in {"paused", "stopped"}:
            self.note(run, "waiting")
        if wanted == "stopped" and state in {"paused", "waiting"}:  # nobody plays it
            self.note(run, "stopped")

    def is_wanted(self, run: RunFolder) -> bool:
        """Whether the operator wants a run played."""
        path = run.path / "wanted"
        return path.is_file() and path.read_text(encoding="utf-8").strip() == "playing"

    def next(self) -> RunFolder | None:
        """Return the oldest run that is wanted, not finished, and does not pause; if any."""
        for run in self.all():
            standing = self.standing(run)
            pausing = standing.state == "paused" and standing.again > self._clock()
            if self.is_wanted(run) and standing.state != "finished" and not pausing:
                return run
        return None

    def standing(self, run: RunFolder) -> Standing:
        """Return where a run stands."""
        return Standing.read(run.path / "standing.json")

    def note(self, run: RunFolder, state: State, *, reason: str = "") -> None:
        """Write down where a run stands.

        Raises:
            StorageError: it cannot be written.
        """
        before, rounds = self.standing(run), len(run.records())
        tries = before.tries if rounds == before.rounds else 0
        standing = Standing(
            state=state,
            reason=reason,
            since=self._clock(),
            tries=tries + 1 if state == "paused" else tries,
            rounds=rounds,
        )
        atomic.write_file(run.path / "standing.json", json.dumps(asdict(standing)))
