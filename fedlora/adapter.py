"""Adapters as values: the types that cross the layers, and their arithmetic.

An adapter is a specification and one flat float32 vector. The tensors are views into that vector,
so sums, norms and the wire format are operations on a single contiguous buffer.
"""

import hashlib
import json
import math
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from fedlora.errors import AdapterError
from fedlora.tensors import KINDS, Factor, TensorSpec

__all__ = [
    "AdapterSpec",
    "AdapterState",
    "AdapterUpdate",
    "Factor",
    "InspectedUpdate",
    "TensorSpec",
    "overlap",
]

_BLOCK = 2**16
"""Values that are summed in float32, or taken to float64, at once."""
_TINY = 1e-20
"""Below this, squares may have been lost to float32's range."""


@dataclass(frozen=True, kw_only=True)
class AdapterSpec:
    """What an adapter is made of; equal digests mean that adapters can be added.

    The change to module ``m``'s weight is ``scaling * B_m @ A_m`` (Hu et al. 2021,
    arXiv:2106.09685, section 4.1). A head takes the place of what the base has there, or has not.
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
    """In the order in which they lie in the flat vector; heads behind all factors."""

    @property
    def scaling(self) -> float:
        """``lora_alpha / rank``, dimensionless."""
        return self.alpha / self.rank

    @property
    def modules(self) -> tuple[str, ...]:
        """Paths of the adapted modules, in order; heads are not adapted, but trained whole."""
        return tuple(dict.fromkeys(each.module for each in self.tensors if each.is_factor))

    @property
    def heads(self) -> tuple[TensorSpec, ...]:
        """The tensors that are no factors of a product."""
        return tuple(tensor for tensor in self.tensors if not tensor.is_factor)

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

    def part(self, factors: Collection[str] = tuple(KINDS), *, rank: int | None = None) -> Self:
        """Return the part of the adapter that is the leading ``rank`` components of ``factors``.

        A part scales its products as the whole does; a rank above the adapter's own makes it wider.
        A head has no rank: a part has all of it, or nothing.
        """
        rank = rank or self.rank
        kept = tuple(tensor for tensor in self.tensors if tensor.factor in factors)
        if rank == self.rank:  # the whole is itself: its digest is known
            return self if kept == self.tensors else replace(self, tensors=kept)
        tensors = tuple(tensor.with_rank(rank) for tensor in kept)
        return replace(self, rank=rank, alpha=self.scaling * rank, tensors=tensors)

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
    """``(spec.size,)`` float32 on the CPU: all tensors, one after another, each row-major."""

    def __post_init__(self) -> None:
        values = self.values
        came = (tuple(values.shape), values.dtype, values.device.type)
        if came != ((self.spec.size,), torch.float32, "cpu"):
            raise AdapterError(
                f"An adapter of {self.spec.size} float32 values on the CPU was expected, but there "
                f"are {tuple(values.shape)} of {values.dtype} on {values.device}."
            )

    def factors(self) -> Iterator[tuple[TensorSpec, Tensor]]:
        """Yield each tensor's specification and a view of its values in their shape."""
        for tensor, start in self.spec.offsets():
            yield tensor, self.values[start : start + tensor.size].view(tensor.shape)

    def pairs(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Yield each module with views of its A, ``(rank, in)``, and its B, ``(out, rank)``.

        Raises:
            AdapterError: a module has only one of the two.
        """
        found: dict[str, dict[Factor, Tensor]] = {}
        for tensor, values in self.factors():
            if tensor.is_factor:
                found.setdefault(tensor.module, {})[tensor.factor] = values
        for module, pair in found.items():
            if len(pair) < 2:
                raise AdapterError(f"{module} has only one of its two factors: there is no B·A.")
            yield module, pair["A"], pair["B"]

    def heads(self) -> Iterator[tuple[str, Tensor]]:
        """Yield each tensor that is no factor of a product: its name, and a view of its values."""
        for tensor, values in self.factors():
            if not tensor.is_factor:
                yield tensor.name, values

    def norm(self) -> float:
        """Return the Frobenius norm over all tensors, to about six digits."""
        square = math.fsum(float(block @ block) for block in self.values.split(_BLOCK))
        if _TINY < square < math.inf:
            return math.sqrt(square)
        return float(torch.linalg.vector_norm(self.values, dtype=torch.float64))

    def inner(self, other: "_Adapter") -> float:
        """Return the inner product of the values, in float64.

        Raises:
            AdapterError: the two have different specifications.
        """
        self.spec.require_same(other.spec)
        blocks = zip(self.values.split(_BLOCK), other.values.split(_BLOCK), strict=True)
        return math.fsum(float(one.double() @ two.double()) for one, two in blocks)

    def is_finite(self) -> bool:
        """Tell whether no value is infinite or not a number."""
        return all(map(math.isfinite, torch.aminmax(self.values)))  # NaN is both of them


@dataclass(frozen=True, kw_only=True, eq=False)
class AdapterState(_Adapter):
    """The tensors themselves: a site's or the global adapter at one moment."""

    @classmethod
    def initial(cls, spec: AdapterSpec, *, seed: int) -> Self:
        """Return the adapter that a run begins with: what ``tensors.KINDS`` says, from the seed.

        Its products change nothing yet: A is drawn, B is zero.
        """
        generator = torch.Generator().manual_seed(seed)
        state = cls(spec=spec, values=torch.zeros(spec.size))
        for tensor, values in state.factors():
            if tensor.kind.drawn and values.ndim == 2:
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
                f"{len(factors)} tensors) does not fit the modules of {spec.base_model} that "
                f"rank {spec.rank} and alpha {spec.alpha:g} put {len(spec.tensors)} tensors on."
            )
        flat = torch.cat([factors[tensor].flatten() for tensor in spec.tensors])
        return type(self)(spec=spec, values=flat)

    def part(self, spec: AdapterSpec) -> Self:
        """Return the factors of ``spec``, a part of this state's specification.

        Guarantees:
            With ``spec`` of a higher rank the products stay: the further components are zero.

        Raises:
            AdapterError: ``spec`` has a factor that this state has not.
        """
        if spec.digest == self.spec.digest:
            return self
        part = type(self)(spec=spec, values=torch.zeros(spec.size))
        for into, values in overlap(part, self):
            into.copy_(values)
        return part

    def minus(self, other: Self) -> Tensor:
        """Return the flat increment that leads from ``other`` to this state.

        Raises:
            AdapterError: the two have different specifications.
        """
        self.spec.require_same(other.spec)
        return self.values - other.values

    def plus(self, update: "AdapterUpdate") -> Self:
        """Return this state with the update's increment added to the part that it is of.

        An update of a higher rank makes the state wider.

        Raises:
            AdapterError: the update is of another adapter.
        """
        whole = self.part(self.spec.part(rank=max(self.spec.rank, update.spec.rank)))
        result = type(self)(spec=whole.spec, values=whole.values.clone())
        for increment, values in overlap(update, result):
            values.add_(increment)
        return result


@dataclass(frozen=True, kw_only=True, eq=False)
class AdapterUpdate(_Adapter):
    """An increment: trained minus received factors of a site, or the aggregate of a round."""

    num_examples: int
    """Training examples behind the increment; what a weighted average weights by."""


@dataclass(frozen=True, kw_only=True, eq=False)
class InspectedUpdate(AdapterUpdate):
    """An update that the gate let pass; only such a one is encoded for the network."""


def overlap(part: _Adapter, whole: _Adapter) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield views of what each tensor of ``part`` and its counterpart in ``whole`` share.

    Raises:
        AdapterError: ``part`` has a tensor that ``whole`` has not, or another base or scaling.
    """
    same_base = part.spec.base_digest == whole.spec.base_digest
    if not (same_base and math.isclose(part.spec.scaling, whole.spec.scaling)):
        raise AdapterError(
            f"The adapters have different bases or scalings ({part.spec.scaling:g} and "
            f"{whole.spec.scaling:g})."
        )
    counterparts = {tensor.name: (tensor, values) for tensor, values in whole.factors()}
    for tensor, values in part.factors():
        counterpart = counterparts.get(tensor.name)
        if counterpart is None or counterpart[0].with_rank(part.spec.rank) != tensor:
            raise AdapterError(f"{tensor.name} of shape {tensor.shape} has no counterpart.")
        shared = tuple(map(slice, map(min, tensor.shape, counterpart[0].shape)))
        yield values[shared], counterpart[1][shared]
