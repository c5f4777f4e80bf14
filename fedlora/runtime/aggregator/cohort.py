"""Who takes part in a round."""

import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

from fedlora import atomic
from fedlora.recipe import Recipe
from fedlora.runtime.account import noise_stream
from fedlora.runtime.run_folder import RunFolder


def cohort_of(
    run: RunFolder, recipe: Recipe, *, number: int, connected: Sequence[str]
) -> tuple[str, ...]:
    """Return the clients of round ``number``, sorted.

    ``fixed-size``: so many of those that are connected, by the recipe's seed. ``poisson``: each
    site of the recipe on its own, connected or not, by draws that nobody can know or repeat. They
    are drawn once and kept until the round is committed: a draw that is thrown away when its
    clients do not answer would make failures choose the cohort.

    Raises:
        StorageError: the draw cannot be kept.
    """
    if recipe.federation.cohort_sampling == "poisson":
        return _poisson(run, recipe, number)
    draw = random.Random(f"{recipe.seed}/cohort/{number}")
    return tuple(sorted(draw.sample(connected, min(recipe.cohort_size, len(connected)))))


def all_folded(records: Sequence[Mapping[str, Any]]) -> bool:
    """Whether every client of each round's cohort sent an update that was folded."""
    return all(
        set(record.get("cohort") or ()) == set(record.get("folded") or ()) for record in records
    )


def _poisson(run: RunFolder, recipe: Recipe, number: int) -> tuple[str, ...]:
    kept, sites = run.kept_cohort(number), sorted(recipe.site_names)
    if not kept.is_file():
        stream = noise_stream(recipe, f"cohort/{number}")
        drawn = stream.poisson_sample(len(sites), recipe.participation_rate)
        atomic.write_file(kept, json.dumps([sites[index] for index in drawn]))
    return tuple(json.loads(kept.read_text(encoding="utf-8")))
