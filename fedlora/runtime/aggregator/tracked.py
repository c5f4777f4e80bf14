"""The rounds in the trackers that the recipe names: a copy of numbers of ``rounds.jsonl``."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import fmean

from fedlora.errors import RecipeError
from fedlora.recipe import Recipe
from fedlora.runtime.comparison import overall
from fedlora.runtime.events import Event, Observer, RoundFinished, RunStarted
from fedlora.runtime.reports import findings
from fedlora.runtime.reports.findings import Record
from fedlora.runtime.run_folder import RunFolder
from fedlora.runtime.trackers import Place, require_installed, tracking


def require_trackable(recipe: Recipe) -> None:
    """Do nothing if the recipe's trackers can keep its rounds.

    Raises:
        RunError: one is not installed.
        RecipeError: what they would keep is not for others.
    """
    if recipe.trackers and recipe.privacy.unit == "client":
        raise RecipeError(
            "trackers: a round's numbers tell of single clients, which privacy.unit: client hides: "
            "remove trackers"
        )
    require_installed(recipe.trackers)


@contextmanager
def tracked(run: RunFolder, observe: Observer) -> Iterator[Observer]:
    """Return an observer that also copies complete rounds to the recipe's trackers.

    What a tracker lacks of the rounds before a stop, it gets at the first event.

    Raises:
        RunError, RecipeError: as ``require_trackable``.
    """
    recipe = run.recipe()
    require_trackable(recipe)
    place = Place(run=run.name, recipe=recipe, folder=run.path, environment=os.environ)
    with tracking(recipe.trackers, place) as curves:

        def observing(event: Event) -> None:
            observe(event)
            if recipe.trackers and isinstance(event, RunStarted | RoundFinished):
                for record in run.records():
                    curves.log(record["round"], points(record))

        yield observing


def points(record: Record) -> dict[str, float]:
    """Return the numbers of a round by the names that trackers show them under."""
    evaluation, training = findings.evaluation(record), findings.training(record)
    found = {
        "round/seconds": record["seconds"],
        "round/bytes_down": record["bytes_down"],
        "round/bytes_up": record["bytes_up"],
        "round/updates": len(record["folded"]),
        "round/refused": len(record["refused"]),
    }
    if evaluation:
        found["eval/loss"] = overall(evaluation).loss
    if training:
        found["train/loss"] = fmean(training.values())
    found |= {f"eval/loss/{site}": measured.loss for site, measured in evaluation.items()}
    return found | {f"train/loss/{site}": loss for site, loss in training.items()}
