"""How two adapters differ: in what they change, and in what their manifests say."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fedlora import products
from fedlora.adapter import AdapterState
from fedlora.errors import AdapterError
from fedlora.peft_folder import read_peft_folder
from fedlora.release.manifest import Manifest
from fedlora.release.reference import unverified

_SAID_ELSEWHERE = "files", "created"
"""Keys of a manifest that differ whenever the adapters do."""


@dataclass(frozen=True, kw_only=True)
class Distance:
    """Between two sums of products, over one module or several."""

    a: float
    """``‖ΔW_a‖``, Frobenius."""
    b: float
    """``‖ΔW_b‖``."""
    apart: float
    """``‖ΔW_a - ΔW_b‖``; its error is about 1e-8 of the larger norm."""
    cosine: float | None
    """Of the angle between them; None where one is zero."""

    @property
    def relative(self) -> float:
        """``‖ΔW_a - ΔW_b‖ / ‖ΔW_a‖``; infinite where only the first is zero."""
        if self.a:
            return self.apart / self.a
        return math.inf if self.apart else 0.0


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Between two adapters of one base."""

    whole: Distance
    modules: Mapping[str, Distance]
    """By module, the furthest apart first."""
    fields: Mapping[str, tuple[object, object]]
    """What the manifests say of each field that differs, files and times left out; None where one
    says nothing. Keys are paths such as ``privacy.epsilon``. Empty unless both have a manifest."""


def diff(a: Path, b: Path, *, base_model: str | None = None) -> Difference:
    """Compare two folders in PEFT's format, releases or not; neither is verified.

    Args:
        a: a folder.
        b: another.
        base_model: what their base is called, where they disagree.

    Raises:
        AdapterError: one holds no adapter, or they are of different bases.
        ReleaseError: one has a file in the manifest's place that is none.
    """
    manifests = one, two = unverified(a), unverified(b)
    digests = [m.base.digest for m in manifests if m]
    known = digests if len(digests) == 2 else ["", ""]
    states = [
        read_peft_folder(folder, base_digest=digest, base_model=base_model)
        for folder, digest in zip((a, b), known, strict=True)
    ]
    names = [(state.spec.base_model, state.spec.base_model_revision) for state in states]
    if len(digests) < 2 and names[0] != names[1]:
        raise AdapterError(
            f"{a} and {b} are adapters of different base models, {names[0][0]!r:.80} and "
            f"{names[1][0]!r:.80}, or of different revisions. If these are names of one model, say "
            "with --base-model which one to use."
        )
    fields = _fields(one, two) if one and two else {}
    whole, modules = distances(*states)
    return Difference(whole=whole, modules=modules, fields=fields)


def distances(a: AdapterState, b: AdapterState) -> tuple[Distance, dict[str, Distance]]:
    """Compare what two adapters change, of whatever ranks and alphas.

    A module that one lacks counts as zero. Equal products of other factors are no difference.

    Returns:
        The distance over all modules, and that of each module, the furthest apart first.

    Raises:
        AdapterError: they are of different bases, or a module's shapes differ.
    """
    squares_a = products.inner_by_module(a, a)
    squares_b = products.inner_by_module(b, b)
    inners = products.inner_by_module(a, b)
    modules = {
        module: _distance(
            squares_a.get(module, 0.0), squares_b.get(module, 0.0), inners.get(module, 0.0)
        )
        for module in {**squares_a, **squares_b}
    }
    whole = _distance(*(math.fsum(each.values()) for each in (squares_a, squares_b, inners)))
    furthest = sorted(modules.items(), key=lambda item: (-item[1].apart, item[0]))
    return whole, dict(furthest)


def _fields(a: Manifest, b: Manifest) -> dict[str, tuple[object, object]]:
    one, two = (dict(_leaves(m.model_dump(mode="json", exclude_none=True))) for m in (a, b))
    return {
        key: (one.get(key), two.get(key))
        for key in sorted({*one, *two})
        if one.get(key) != two.get(key) and key.partition(".")[0] not in _SAID_ELSEWHERE
    }


def _distance(square_a: float, square_b: float, inner: float) -> Distance:
    a, b = math.sqrt(max(0.0, square_a)), math.sqrt(max(0.0, square_b))
    return Distance(
        a=a,
        b=b,
        apart=math.sqrt(max(0.0, square_a - 2 * inner + square_b)),
        cosine=inner / (a * b) if a and b else None,
    )


def _leaves(values: Mapping[str, object], path: str = "") -> Iterator[tuple[str, object]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value
