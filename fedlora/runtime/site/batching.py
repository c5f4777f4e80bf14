"""Rows of a site as micro-batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fedlora.data.batches import Batch
from fedlora.runtime.site.objectives import Objective
from fedlora.runtime.site.objectives.objective import Tokenized

_PADDING = 64
"""Private rows are padded to a multiple of so many tokens."""


@dataclass(frozen=True)
class Batching:
    """Puts an objective's rows side by side.

    Args:
        objective: whose rows they are.
        size: rows of a micro-batch.
        pad_token_id: what short rows are filled with.
        longest: row that there may be, in tokens; a base may have no more places.
    """

    objective: Objective[Any, Any, Any]
    size: int
    pad_token_id: int
    longest: int

    def batch(self, rows: Sequence[Tokenized], *, length: int | None = None) -> Batch:
        """Return rows (at least one) as one batch, padded to the longest or to ``length``."""
        batch: Batch = self.objective.collate(rows, pad_token_id=self.pad_token_id, length=length)
        return batch

    def sorted_by_length(self, rows: Sequence[Tokenized]) -> Iterator[Batch]:
        """Yield all rows once, those of like length together."""
        rows = sorted(rows, key=lambda row: row.length)
        for start in range(0, len(rows), self.size):
            yield self.batch(rows[start : start + self.size])

    def padded_alone(self, rows: Sequence[Tokenized]) -> Iterator[Batch]:
        """Yield all rows once, each padded to a length that it alone decides.

        Padding changes the rounding of a row's gradient: another row must not decide it.
        """
        groups: dict[int, list[Tokenized]] = {}
        for row in rows:
            length = min(-(-row.length // _PADDING) * _PADDING, self.longest)
            groups.setdefault(length, []).append(row)
        for length, group in sorted(groups.items()):
            for start in range(0, len(group), self.size):
                yield self.batch(group[start : start + self.size], length=length)
