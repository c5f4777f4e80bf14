"""What training would make of data: it is read and tokenised as at a site, without the base.

Nothing is trained, and nothing leaves the process but what is returned; rows are private.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fedlora.data.examples import Labelled, Row
from fedlora.data.formats import read_dataset
from fedlora.data.partition import site_examples
from fedlora.data.tokens import TokenizedExample, Tokenizer
from fedlora.errors import DataError, RowError
from fedlora.recipe import Recipe
from fedlora.runtime.site.rows import PreparedRows, prepare, require_rows
from fedlora.sections import AT_SITE, Dataset
from fedlora.training.base_model import resolve
from fedlora.training.base_model.network import load_tokenizer


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """One dataset."""

    source: str
    format: str
    """As detected; of a dataset that cannot be used, as named."""
    rows: Sequence[Row]
    """Those that are trained on."""
    prepared: PreparedRows
    """The same as tokens."""
    problems: Sequence[RowError]
    """Rows that cannot be learned from; training would end at the first."""
    failure: str | None = None
    """Why the dataset cannot be used at all."""

    @property
    def tokens(self) -> int:
        """Tokens of the rows that are trained on."""
        return sum(len(sequence.input_ids) for sequence in self._sequences)

    @property
    def supervised(self) -> int:
        """Those of them that are learned."""
        return sum(sum(sequence.supervised[1:]) for sequence in self._sequences)

    @property
    def labels(self) -> Mapping[str, int]:
        """How many rows have each label, the most frequent first; none where rows have no label."""
        found = Counter(row.label for row in self.rows if isinstance(row, Labelled))
        return dict(found.most_common())

    @property
    def copies(self) -> Sequence[str]:
        """Places of rows that say what an earlier row says."""
        seen: set[Row] = set()
        places = []
        for row in self.rows:
            if row in seen:
                places.append(row.where)
            seen.add(row)
        return places

    @property
    def faults(self) -> Sequence[str]:
        """Why training would go wrong; none if it would not."""
        if self.failure:
            return [self.failure]
        if self.problems:
            count = len(self.problems)
            what = f"{count} of its rows cannot be learned from: correct or remove them"
            return [f"{self.source}: {what}"]
        if not self.rows:
            return [f"{self.source}: all its rows are longer than sequence_len: raise it"]
        return []

    @property
    def _sequences(self) -> list[TokenizedExample]:
        return [sequence for row in self.prepared.rows for sequence in row.sequences]


class Piece(NamedTuple):
    """Consecutive tokens of a row, all learned or none."""

    text: str
    learned: bool


def tokenizer_of(recipe: Recipe) -> Tokenizer:
    """Return the tokenizer of a recipe's base model, of which nothing else is needed.

    Raises:
        BaseModelError: it is not there.
    """
    folder = resolve(recipe.base_model, recipe.base_model_revision, weights=False)
    tokenizer: Tokenizer = load_tokenizer(folder)
    return tokenizer


def check_dataset(dataset: Dataset, recipe: Recipe, tokenizer: Tokenizer) -> DataReport:
    """Return what training by the recipe would make of a dataset."""
    problems: list[RowError] = []
    nothing = PreparedRows(rows=(), places=(), lengths=(), cut=0, dropped=0)
    try:
        found = read_dataset(dataset, objective=recipe.objective, on_problem=problems.append)
    except DataError as error:
        return DataReport(
            source=dataset.path,
            format=dataset.type,
            rows=(),
            prepared=nothing,
            problems=problems,
            failure=str(error),
        )
    prepared = prepare(found.examples, recipe, tokenizer, on_problem=problems.append)
    return DataReport(
        source=dataset.path,
        format=found.type,
        rows=[found.examples[place] for place in prepared.places],
        prepared=prepared,
        problems=problems,
    )


def check_sites(recipe: Recipe, tokenizer: Tokenizer) -> list[str]:
    """Return why single sites of a recipe would have too little to train on or to hold out."""
    faults = []
    for site in recipe.site_names:
        own = [dataset.path for dataset in recipe.datasets if dataset.site == site]
        if AT_SITE not in own:
            try:
                examples = site_examples(recipe, site)
                if recipe.excess_length_strategy == "drop":
                    train, held_out = (
                        prepare(rows, recipe, tokenizer)
                        for rows in (examples.train, examples.held_out)
                    )
                    require_rows(recipe, site, train=train, held_out=held_out)
            except DataError as error:
                faults.append(str(error))
    return faults


def shared(train: Sequence[DataReport], held_out: DataReport) -> list[str]:
    """Return the places of held-out rows that are trained on."""
    trained = {row for report in train for row in report.rows}
    return [row.where for row in held_out.rows if row in trained]


def pieces(sequence: TokenizedExample, tokenizer: Tokenizer) -> list[Piece]:
    """Return a sequence as text, parted where what is learned begins or ends."""
    found, start = [], 0
    for end in range(1, sequence.length + 1):
        if end == sequence.length or sequence.supervised[end] != sequence.supervised[start]:
            text = str(tokenizer.decode(list(sequence.input_ids[start:end])))
            found.append(Piece(text, sequence.supervised[start]))
            start = end
    return found
