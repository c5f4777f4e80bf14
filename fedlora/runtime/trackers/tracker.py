"""What a tracker does, and what it is told of the run whose curves it keeps."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fedlora.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Place:
    """Whose curves are kept, and where."""

    run: str
    """Name of the run."""
    recipe: Recipe
    folder: Path
    """Where a tracker's files are, unless ``environment`` names another place."""
    environment: Mapping[str, str]
    """Variables that may name a server, and its keys; where there are none, nothing is sent."""


class Tracker(Protocol):
    """Keeps the curves of one run. Any method may raise whatever its library does."""

    def begin(self, known: str) -> str:
        """Begin, or go on after a stop.

        Args:
            known: what this returned at the beginning; empty for a run that is new to it.

        Returns:
            What the tracker calls the run.
        """

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keep what was measured at a step, safe from the end of this process.

        Args:
            step: larger than that of the call before.
            metrics: finite numbers by name, such as ``eval/loss`` and ``eval/loss/hospital``.
        """

    def end(self, *, complete: bool) -> None:
        """Close the run; it may be begun again.

        Args:
            complete: it was not stopped.
        """
