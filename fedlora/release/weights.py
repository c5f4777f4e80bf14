"""A base model's safetensors file, written again with some of its weights changed."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fedlora.errors import ReleaseError
from fedlora.tensor_file import DTYPES, Layout, header, raw

_BLOCK = 2**20
"""Values that are in memory at once, unless a row has more."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Change:
    """What is added to a weight of ``(out, in)``: ``scaling * up @ down``."""

    down: Tensor
    """A, ``(rank, in)``."""
    up: Tensor
    """B, ``(out, rank)``."""
    scaling: float

    def added_to(self, rows: Tensor, start: int) -> Tensor:
        """Return rows of the weight, from ``start`` on, with their change, in float64."""
        up = self.up[start : start + len(rows)].double()
        return rows.double() + self.scaling * (up @ self.down.double())


@dataclass(frozen=True, kw_only=True, eq=False)
class Weights:
    """A safetensors file that is to be written again; nothing of it is read yet but the header."""

    path: Path
    layout: Layout
    """As it will be written."""
    metadata: Mapping[str, str]

    @classmethod
    def open(cls, path: Path, *, dtype: torch.dtype | None) -> Self:
        """Read a file's header.

        Args:
            path: the file.
            dtype: what floating-point tensors are to be written in; None: each as it is.

        Raises:
            ReleaseError: it is no such file, or has tensors of types that full precision has not.
        """
        layout = {}
        try:
            with safe_open(path, framework="pt") as file:
                metadata = dict(file.metadata() or {})
                for name in file.offset_keys():
                    part = file.get_slice(name)
                    own = DTYPES.get(part.get_dtype())
                    if own is None:
                        raise ReleaseError(
                            f"{path}: {name} is of type {part.get_dtype()}. This base is "
                            "quantised: name the one in full precision."
                        )
                    written = dtype if dtype and own.is_floating_point else own
                    layout[name] = (written, tuple(part.get_shape()))
        except (OSError, SafetensorError) as error:
            raise ReleaseError(f"{path}: weights in safetensors were expected ({error}).") from None
        return cls(path=path, layout=layout, metadata=metadata)

    @property
    def size(self) -> int:
        """Bytes of all tensors as they will be written."""
        return sum(math.prod(shape) * dtype.itemsize for dtype, shape in self.layout.values())

    def write(self, path: Path, changes: Mapping[str, Change]) -> None:
        """Write the file again, a few rows at a time.

        Args:
            path: the new file.
            changes: by the names of tensors, which may be of other files too.

        Raises:
            ReleaseError: a weight leaves the range of its type.
            OSError: the file cannot be written.
        """
        with safe_open(self.path, framework="pt") as source, path.open("wb") as file:
            file.write(header(self.layout, metadata=self.metadata))
            for name, (dtype, shape) in self.layout.items():
                change = changes.get(name)
                for start, block in _blocks(source.get_slice(name), shape):
                    values = change.added_to(block, start) if change else block
                    rounded = values.to(dtype)
                    if (change or dtype != block.dtype) and not rounded.isfinite().all():
                        raise ReleaseError(
                            f"{name}: it leaves the range of {dtype}. Choose --dtype float32 or "
                            "bfloat16."
                        )
                    file.write(raw(rounded))


def _blocks(part: Any, shape: tuple[int, ...]) -> Iterator[tuple[int, Tensor]]:  # noqa: ANN401 - safetensors' slices have no type
    """Yield a tensor in blocks of rows, each with the number of its first row."""
    if not shape:
        yield 0, part[...]
        return
    rows = max(1, _BLOCK // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], rows):
        yield start, part[start : start + rows]
