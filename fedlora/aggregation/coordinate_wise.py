"""Coordinate-wise trimmed mean and median: each value is chosen on its own."""

import sys
import tempfile
import weakref
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedlora.adapter import AdapterSpec, AdapterState, AdapterUpdate
from fedlora.aggregation.round import Round, added, opened
from fedlora.errors import StorageError

_BLOCK = 2**20
"""Values that are looked at together: 4 MiB."""


class TrimmedMean:
    """For each value, the mean of what the clients send without the extremes at either end.

    *Communicates* what the method does in whose place it aggregates: ``freeze-a``, ``alternate``
    or ``refresh``, where a sum of factors is exact. *Plain weighted sum*: no, the aggregator must
    see each update. *Mixed ranks*: no. Weights do not count: nobody can verify them.

    What to expect: it stands as many hostile clients as are trimmed at each end, whatever they
    send, up to a bias that grows with how much the honest ones differ. It does not stand changes
    that keep among the honest values, such as ALIE's, and where sites differ it loses what only
    few of them learnt.

    Guarantees:
        The updates wait in a temporary file (see ``TMPDIR``) that the operating system removes with
        the process. The order of the clients does not matter.

    References:
        Yin et al. 2018, arXiv:1803.01498, definition 2.
    """

    def __init__(self, attackers: int) -> None:
        """Trim ``attackers`` values at each end, or as many as leave one or two."""
        self._attackers = attackers
        self._round: Round | None = None
        self._rows: _Rows | None = None

    def begin(self, global_adapter: AdapterState) -> None:
        self._round = Round(global_adapter=global_adapter)
        self._forget()

    def add(self, update: AdapterUpdate, weight: float, *, share: float = 1.0) -> None:
        current = opened(self._round)
        current.require_factors(update.spec)
        rows = self._rows or _Rows(update.spec)
        rows.spec.require_same(update.spec)
        current.part(weight, share=share)
        rows.append(update.values if share == 1 else update.values * share)
        self._rows = rows
        current.count(update, weight)

    def finish(self) -> AdapterUpdate:
        current, rows = opened(self._round), added(self._rows)
        trimmed = min(self._attackers, (rows.count - 1) // 2)
        values = torch.empty(rows.spec.size)
        for start, block in rows.blocks():
            block.sort(axis=0)
            kept = block[trimmed : rows.count - trimmed].mean(axis=0, dtype=np.float64)
            values[start : start + len(kept)] = torch.from_numpy(kept)
        self._round = None
        self._forget()
        return AdapterUpdate(spec=rows.spec, values=values, num_examples=current.num_examples)

    def _forget(self) -> None:
        if self._rows:
            self._rows.close()
        self._rows = None


class Median(TrimmedMean):
    """For each value, the median of what the clients send; of two middle values, their mean.

    All as for ``TrimmedMean``, but it stands any minority of hostile clients, at the price of using
    one or two clients for each value.

    References:
        Yin et al. 2018, arXiv:1803.01498, definition 1.
    """

    def __init__(self) -> None:
        super().__init__(attackers=sys.maxsize)


class _Rows:
    """Vectors of one adapter in a file without a name, read back a few columns at a time."""

    def __init__(self, spec: AdapterSpec) -> None:
        self.spec = spec
        self.count = 0
        try:
            file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - it lives as long as this does
        except OSError as error:
            raise _unwritable(error) from None
        self._file = file
        self.close = weakref.finalize(self, file.close)

    def append(self, values: Tensor) -> None:
        """Add one more vector.

        Raises:
            StorageError: there is no space for it.
        """
        rest = values.numpy().data.cast("B")
        self._file.seek(self.count * len(rest))
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise _unwritable(error) from None
        self.count += 1

    def blocks(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield ``(count, columns)`` values of all vectors with their first column."""
        size, width = self.spec.size, max(1, _BLOCK // self.count)
        for start in range(0, size, width):
            block = np.empty((self.count, min(width, size - start)), np.float32)
            for row, values in enumerate(block):
                self._file.seek((row * size + start) * values.itemsize)
                self._file.readinto(values.data.cast("B"))
            yield start, block


def _unwritable(error: OSError) -> StorageError:
    return StorageError(
        f"The round's updates cannot be kept in {tempfile.gettempdir()} ({error.strerror}): make "
        "space, or let TMPDIR name a folder on a larger disk."
    )
