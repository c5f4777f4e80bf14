"""Which rows a site trains on and which it holds out."""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from fedlora.data.examples import Row
from fedlora.data.files import files_of
from fedlora.data.formats import OnProblem, Rows, on_problem_of, read_dataset
from fedlora.data.readers import PACKED
from fedlora.errors import DataError
from fedlora.recipe import Recipe
from fedlora.sections import AT_SITE, STANDARD_LIBRARY, Dataset, RowType


@dataclass(frozen=True, slots=True)
class SiteExamples:
    """The rows of one site.

    Guarantees:
        No row of one part equals a row of the other. Both hold at least one row, but under
        ``privacy.unit: example``, where that would tell, perhaps none.
    """

    train: tuple[Row, ...]
    held_out: tuple[Row, ...]
    types: tuple[RowType, ...]
    """Formats of the datasets that the rows came from, in the recipe's order, each once."""
    sources: tuple[Dataset, ...]
    """The dataset that each row of ``train`` is of."""


def site_examples(recipe: Recipe, site: str) -> SiteExamples:
    """Return the rows of one site, split into those to train on and those held out.

    A site has the datasets labelled with its name. When none is labelled, the rows of all are
    dealt out among ``recipe.site_names`` by a shuffle that depends on ``recipe.seed`` alone, in
    shares that differ by one row at most, where copies of a row count once and stay together.
    Sites that are labelled may hold equal rows.

    The held-out share is ``recipe.val_set_size`` of the different rows, drawn by a shuffle that
    depends on the seed and the site's name. Rows that occur once are drawn first; copies of a row
    that is drawn nevertheless are left out of the training part.

    Under ``privacy.unit: example`` a row's own content decides, with the seed, whose it is and
    whether it is held out, so that a row more or less moves no other; shares are as asked for on
    average only.

    Raises:
        DataError: the data cannot be read, the recipe does not know the site, or the site has fewer
            than two different rows.
    """
    if site not in recipe.site_names:
        raise DataError(
            f"site {site}: the recipe has no such site, only {', '.join(recipe.site_names)}."
        )
    labelled = [dataset for dataset in recipe.datasets if dataset.site == site]
    datasets = labelled or recipe.datasets
    if recipe.privacy.unit == "example":
        _require_whole_records(datasets)
    objective, on_problem = recipe.objective, on_problem_of(recipe)
    rows = [_read(dataset, objective, on_problem, folder=Path.cwd()) for dataset in datasets]
    parts = zip(rows, datasets, strict=True)
    owned = [(row, dataset) for part, dataset in parts for row in part.examples]
    if not labelled and recipe.privacy.unit == "example":
        count, place = len(recipe.site_names), recipe.site_names.index(site)
        owned = [o for o in owned if int(_draw(o[0], f"{recipe.seed}/deal") * count) == place]
    elif not labelled:
        deal = random.Random(f"{recipe.seed}/deal")
        # copies of a row go to one site, all of them
        distinct = list(dict.fromkeys(row for row, _ in owned))
        order = deal.sample(range(len(distinct)), len(distinct))
        own = order[recipe.site_names.index(site) :: len(recipe.site_names)]
        mine = {distinct[index] for index in own}
        owned = [(row, dataset) for row, dataset in owned if row in mine]
    drawn = _held_out([row for row, _ in owned], recipe=recipe, site=site)
    kept = [(row, dataset) for row, dataset in owned if row not in drawn]
    return SiteExamples(
        train=tuple(row for row, _ in kept),
        held_out=tuple(row for row in dict.fromkeys(row for row, _ in owned) if row in drawn),
        types=tuple(dict.fromkeys(part.type for part in rows)),
        sources=tuple(dataset for _, dataset in kept),
    )


def _require_whole_records(datasets: Sequence[Dataset]) -> None:
    """Refuse files whose paragraphs are packed into rows: one more would move all after it."""
    for dataset in datasets:
        files = [] if dataset.path in {STANDARD_LIBRARY, AT_SITE} else files_of(dataset)
        packed = next((file for file in files if file.suffix.lower() in PACKED), None)
        if packed:
            raise DataError(
                f"{packed}: paragraphs of plain text are packed into rows, so a row is no record "
                "of its own, which privacy.unit: example needs. Write the records as .jsonl, one a "
                "line."
            )


@lru_cache(maxsize=32)
def _read(
    dataset: Dataset,
    objective: str,
    on_problem: OnProblem,
    *,
    folder: Path,  # noqa: ARG001 - of the cache's key: a path is relative to it
) -> Rows:
    """Read a dataset once in this process: the sites of a simulation all need it."""
    return read_dataset(dataset, objective=objective, on_problem=on_problem)


def _held_out(rows: Sequence[Row], *, recipe: Recipe, site: str) -> set[Row]:
    """Return which rows are held out."""
    copies = Counter(rows)
    if len(copies) < 2:
        raise DataError(
            f"site {site}: it has {len(copies)} different rows, but needs at least 2, one to train "
            "on and one to hold out. Add rows, or lower federation.sites."
        )
    distinct = list(copies)
    if recipe.privacy.unit == "example":
        seed, share = f"{recipe.seed}/{site}", recipe.val_set_size
        return {row for row in distinct if _draw(row, seed) < share}
    random.Random(f"{recipe.seed}/{site}").shuffle(distinct)
    distinct.sort(key=copies.__getitem__)
    share = round(recipe.val_set_size * len(distinct))
    return set(distinct[: min(max(share, 1), len(distinct) - 1)])


def _draw(row: Row, seed: str) -> float:
    """Return a number in [0, 1) that the row's content and the seed decide."""
    content = json.dumps([seed, row.content])
    return int.from_bytes(hashlib.sha256(content.encode()).digest()[:6]) / 2**48
