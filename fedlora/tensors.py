"""The kinds of tensors that an adapter has. All that tells one kind from another stands here."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, Self

Factor = Literal["A", "B", "head"]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What holds for a kind of tensor."""

    suffix: str
    """What a tensor's name has behind its module; a head's module is its parameter's whole path."""
    rank_axis: Literal[0, 1] | None
    """The axis of its shape that is the rank.

    Without one it is no factor of a product: no rank cuts it, every method trains and sends it in
    each round, and it is averaged and compared by its own values, whatever is done with B·A.
    """
    drawn: bool
    """A run begins with matrices that the recipe's seed gives, uniform on ±1/√columns, as PEFT
    begins A and torch a linear module; vectors, and kinds that are not drawn, begin with zero."""


KINDS: Mapping[Factor, Kind] = {
    "A": Kind(suffix=".lora_A", rank_axis=0, drawn=True),
    "B": Kind(suffix=".lora_B", rank_axis=1, drawn=False),
    "head": Kind(suffix="", rank_axis=None, drawn=True),
}

WHOLE: tuple[Factor, ...] = tuple(name for name, kind in KINDS.items() if kind.rank_axis is None)
"""The kinds that are no factors of a product."""


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One tensor of an adapter."""

    module: str
    """Path of the adapted module in the base model, such as ``model.layers.0.mlp.up_proj``; of a
    head, that of its parameter, such as ``classifier.dense.bias``."""
    factor: Factor
    shape: tuple[int, ...]
    """``(rank, in_features)`` for A, ``(out_features, rank)`` for B; a head's own."""

    @property
    def kind(self) -> Kind:
        """What holds for tensors like this."""
        return KINDS[self.factor]

    @property
    def is_factor(self) -> bool:
        """Whether it is one of the two factors of a product."""
        return self.kind.rank_axis is not None

    @property
    def owner(self) -> str:
        """Path of the module in the base model that holds the parameter of a head."""
        return self.module.rpartition(".")[0]

    @property
    def name(self) -> str:
        """Name of the tensor, such as ``model.layers.0.mlp.up_proj.lora_A``."""
        return self.module + self.kind.suffix

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    def with_rank(self, rank: int) -> Self:
        """Return the same tensor for another rank."""
        axis = self.kind.rank_axis
        shape = tuple(rank if place == axis else size for place, size in enumerate(self.shape))
        return replace(self, shape=shape)
