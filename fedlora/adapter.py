"""Adapters as values: the types that cross the layers, and their arithmetic.

An adapter is a specification and one flat float32 vector. The factors are views into that vector,
so sums, norms and the wire format are operations on a single contiguous buffer.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Literal, Self

import torch
from torch import Tensor

from fedlora.errors import AdapterError

Factor = Literal["A", "B"]


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One factor of one adapted module."""

    module: str
    """Path of the adapted module in the base model, such as ``model.layers.0.mlp.up_proj``."""
    factor: Factor
    shape: tuple[int, int]
    """``(rank, in_features)`` for A, ``(out_features, rank)`` for B."""

    @property
    def name(self) -> str:
        """Name of the tensor, such as ``model.layers.0.mlp.up_proj.lora_A``."""
        return f"{self.module}.lora_{self.factor}"

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class AdapterSpec:
    """What an adapter is made of; equal digests mean that adapters can be added.

    The change to module ``m``'s weight is ``scaling * B_m @ A_m`` (Hu et al. 2021,
    arXiv:2106.09685, section 4.1).
    """

    base_model: str
    """The base model as the recipe names it."""
    base_model_revision: str | None
    base_digest: str
    """SHA-256, in hexadecimal, of the base's weights, configuration and tokenizer."""
    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    """What PEFT needs in order to find the adapted modules again."""
    tensors: tuple[TensorSpec, ...]
    """The factors in the order in which they lie in the flat vector."""

    @property
    def scaling(self) -> float:
        """``lora_alpha / rank``, dimensionless."""
        return self.alpha / self.rank

    @cached_property
    def size(self) -> int:
        """Number of values of the whole adapter."""
        return sum(tensor.size for tensor in self.tensors)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the specification, in hexadecimal."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """Return the specification as canonical JSON."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what ``to_json`` wrote."""
        fields = json.loads(text)
        tensors = tuple(
            TensorSpec(module=t["module"], factor=t["factor"], shape=tuple(t["shape"]))
            for t in fields.pop("tensors")
        )
        fields["target_modules"] = tuple(fields["target_modules"])
        return cls(tensors=tensors, **fields)

    def require_same(self, other: Self) -> None:
        """Do nothing if ``other`` is the same specification.

        Raises:
            AdapterError: it is another.
        """
        if other.digest != self.digest:
            raise AdapterError(
                f"The adapters have different specifications ({self.digest[:12]} and "
                f"{other.digest[:12]}): base model, rank, alpha and target modules must be equal."
            )

    def offsets(self) -> Iterator[tuple[TensorSpec, int]]:
        """Yield each tensor's specification with its first index in the flat vector."""
        start = 0
        for tensor in self.tensors:
            yield tensor, start
            start += tensor.size


@dataclass(frozen=True, kw_only=True, eq=False)
class _Adapter:
    spec: AdapterSpec
    values: Tensor
    """``(spec.size,)`` float32 on the CPU: all factors, one after another, each row-major."""

    def __post_init__(self) -> None:
        values = self.values
        came = (tuple(values.shape), values.dtype, values.device.type)
        if came != ((self.spec.size,), torch.float32, "cpu"):
            raise AdapterError(
                f"An adapter of {self.spec.size} float32 values on the CPU was expected, but there "
                f"are {tuple(values.shape)} of {values.dtype} on {values.device}."
            )

    def factors(self) -> Iterator[tuple[TensorSpec, Tensor]]:
        """Yield each factor's specification and a view of its values in their shape."""
        for tensor, start in self.spec.offsets():
            yield tensor, self.values[start : start + tensor.size].view(tensor.shape)

    def norm(self) -> float:
        """Return the Frobenius norm over all factors."""
        return float(torch.linalg.vector_norm(self.values, dtype=torch.float64))

    def is_finite(self) -> bool:
        """Tell whether no value is infinite or not a number."""
        return bool(torch.isfinite(self.values).all())


@dataclass(frozen=True, kw_only=True, eq=False)
class AdapterState(_Adapter):
    """The factors themselves: a site's or the global adapter at one moment."""

    @classmethod
    def initial(cls, spec: AdapterSpec, *, seed: int) -> Self:
        """Return the adapter that changes nothing yet: A drawn from the seed, B zero.

        A is uniform on ±1/√in_features, the Kaiming initialisation that PEFT uses.
        """
        generator = torch.Generator().manual_seed(seed)
        state = cls(spec=spec, values=torch.zeros(spec.size))
        for tensor, values in state.factors():
            if tensor.factor == "A":
                bound = 1 / math.sqrt(tensor.shape[1])
                values.uniform_(-bound, bound, generator=generator)
        return state

    def arranged_as(self, spec: AdapterSpec) -> Self:
        """Return the same factors in the order of ``spec``, as an adapter of ``spec``.

        Raises:
            AdapterError: the factors, their shapes or the scaling are others.
        """
        factors = dict(self.factors())
        if factors.keys() != set(spec.tensors) or self.spec.scaling != spec.scaling:
            raise AdapterError(
                f"The adapter (rank {self.spec.rank}, alpha {self.spec.alpha:g}, "
                f"{len(factors)} factors) does not fit the modules of {spec.base_model} that "
                f"rank {spec.rank} and alpha {spec.alpha:g} put {len(spec.tensors)} factors on."
            )
        flat = torch.cat([factors[tensor].flatten() for tensor in spec.tensors])
        return type(self)(spec=spec, values=flat)

    def minus(self, other: Self) -> Tensor:
        """Return the flat increment that leads from ``other`` to this state.

        Raises:
            AdapterError: the two have different specifications.
        """
        self.spec.require_same(other.spec)
        return self.values - other.values

    def plus(self, update: "AdapterUpdate") -> Self:
        """Return this state with the update's increment added.

        Raises:
            AdapterError: the two have different specifications.
        """
        self.spec.require_same(update.spec)
        return type(self)(spec=self.spec, values=self.values + update.values)


@dataclass(frozen=True, kw_only=True, eq=False)
class AdapterUpdate(_Adapter):
    """An increment: trained minus received factors of a site, or the aggregate of a round."""

    num_examples: int
    """Training examples behind the increment; what a weighted average weights by."""


@dataclass(frozen=True, kw_only=True, eq=False)
class InspectedUpdate(AdapterUpdate):
    """An update that the gate let pass; only such a one is encoded for the network."""
