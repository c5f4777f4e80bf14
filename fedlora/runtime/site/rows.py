"""A site's rows as its objective learns from them, and what became of those that are too long."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fedlora.data.examples import Row
from fedlora.data.formats import OnProblem, refuse
from fedlora.data.tokens import Tokenizer
from fedlora.errors import DataError, RowError
from fedlora.recipe import Recipe
from fedlora.runtime.processes import log
from fedlora.runtime.site.objectives import objective_of
from fedlora.runtime.site.objectives.objective import Tokenized


@dataclass(frozen=True, slots=True)
class PreparedRows:
    """Rows as tokens."""

    rows: Sequence[Tokenized]
    places: Sequence[int]
    """Of each of them, its place among those that were given."""
    lengths: Sequence[int]
    """Tokens of all rows that can be learned from, before any are cut or left out."""
    cut: int
    """How many of them lost tokens to ``sequence_len``."""
    dropped: int
    """How many were left out because of it."""


def prepare(
    rows: Iterable[Row],
    recipe: Recipe,
    tokenizer: Tokenizer,
    *,
    on_problem: OnProblem = refuse,
) -> PreparedRows:
    """Tokenise rows; each decides alone whether it is cut or dropped.

    Args:
        rows: of the kind that the recipe's objective takes.
        recipe: its ``sequence_len``, and what is to become of longer rows.
        tokenizer: the base model's.
        on_problem: told of each row that cannot be learned from, which is then left out. By default
            the first ends it all.

    Raises:
        RowError: a row cannot be learned from, or is too long where that is refused.
    """
    objective, strategy = objective_of(recipe), recipe.excess_length_strategy
    kept: list[Tokenized] = []
    places: list[int] = []
    lengths: list[int] = []
    cut = dropped = 0
    for place, row in enumerate(rows):
        try:
            tokens: Tokenized = objective.tokenize(row, tokenizer)
            _require_fit(row, tokens, recipe)
        except RowError as error:
            on_problem(error)
            continue
        lengths.append(tokens.length + tokens.excess)
        if tokens.excess and strategy == "drop":
            dropped += 1
            continue
        cut += tokens.excess > 0
        kept.append(tokens)
        places.append(place)
    return PreparedRows(rows=kept, places=places, lengths=lengths, cut=cut, dropped=dropped)


def require_rows(recipe: Recipe, site: str, *, train: PreparedRows, held_out: PreparedRows) -> None:
    """Do nothing if both parts of a site's rows have any left, or the recipe hides whether.

    Raises:
        DataError: a part has none.
    """
    for part, rows in (("train on", train), ("hold out", held_out)):
        if rows.dropped and not rows.rows and recipe.privacy.unit != "example":
            raise DataError(
                f"site {site}: all rows to {part} are longer than sequence_len, "
                f"{recipe.sequence_len}. Raise it, or set excess_length_strategy: truncate."
            )


def tell_of_excess(
    recipe: Recipe, site: str, *, train: PreparedRows, held_out: PreparedRows
) -> None:
    """Log how many of a site's rows are too long, and what becomes of them."""
    for part, rows in (("train on", train), ("hold out", held_out)):
        for count, fate in ((rows.cut, "lose tokens"), (rows.dropped, "are left out")):
            if count:
                log.warn(
                    f"site {site}: {count} of {len(rows.rows) + rows.dropped} rows to {part} are "
                    f"longer than sequence_len, {recipe.sequence_len}, and {fate}"
                )


def _require_fit(row: Row, tokens: Tokenized, recipe: Recipe) -> None:
    if tokens.excess and recipe.excess_length_strategy == "raise":
        raise RowError(
            row.where,
            f"it is longer than sequence_len, {recipe.sequence_len}. Raise that, shorten the row, "
            "or set excess_length_strategy: truncate or drop.",
        )
