"""Small adapters: by hand, and drawn by Hypothesis."""

from dataclasses import replace

import torch
from hypothesis import strategies as st

from fedlora.adapter import AdapterSpec, AdapterState, AdapterUpdate, InspectedUpdate, TensorSpec

MODULES = {"model.layers.0.self_attn.q_proj": (3, 5), "model.layers.0.mlp.up_proj": (3, 4)}
HEADS = {"classifier.dense.weight": (4, 3), "classifier.dense.bias": (4,), "score.weight": (2, 4)}


def make_spec(
    *,
    rank: int = 2,
    alpha: float = 4.0,
    modules: dict[str, tuple[int, int]] = MODULES,
    heads: dict[str, tuple[int, ...]] | None = None,
    base_digest: str = "ab" * 32,
) -> AdapterSpec:
    """Return the specification of an adapter on ``modules``: name to (in, out) features.

    ``heads`` are of these shapes, by the paths of their parameters.
    """
    tensors = [
        TensorSpec(module=module, factor=factor, shape=shape)
        for module, (inputs, outputs) in modules.items()
        for factor, shape in (("A", (rank, inputs)), ("B", (outputs, rank)))
    ]
    tensors += [
        TensorSpec(module=path, factor="head", shape=shape) for path, shape in (heads or {}).items()
    ]
    return AdapterSpec(
        base_model="embedded",
        base_model_revision=None,
        base_digest=base_digest,
        rank=rank,
        alpha=alpha,
        target_modules=tuple(sorted({module.rpartition(".")[2] for module in modules})),
        tensors=tuple(tensors),
    )


def make_state(spec: AdapterSpec | None = None, *, seed: int = 0) -> AdapterState:
    """Return an adapter of random values."""
    spec = spec or make_spec()
    generator = torch.Generator().manual_seed(seed)
    return AdapterState(spec=spec, values=torch.randn(spec.size, generator=generator))


def make_update(
    spec: AdapterSpec | None = None, *, seed: int = 0, num_examples: int = 3
) -> InspectedUpdate:
    """Return an update of random values, as the gate lets it pass."""
    state = make_state(spec, seed=seed)
    return InspectedUpdate(spec=state.spec, values=state.values, num_examples=num_examples)


def copy_of(update: AdapterUpdate) -> AdapterUpdate:
    """Return an equal update, for an aggregator that may overwrite its own."""
    return replace(update, values=update.values.clone())


NAMES = st.from_regex(r"[a-z]{1,8}(\.[a-z0-9_]{1,6}){0,2}", fullmatch=True)
SIZES = st.integers(1, 6)
WIDE = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def specs(draw: st.DrawFn) -> AdapterSpec:
    """Specifications of up to three modules, two heads and rank four."""
    modules = draw(st.dictionaries(NAMES, st.tuples(SIZES, SIZES), min_size=1, max_size=3))
    shapes = st.one_of(st.tuples(SIZES), st.tuples(SIZES, SIZES))
    heads = draw(st.dictionaries(NAMES.map("{}.bias".format), shapes, max_size=2))
    alpha = draw(st.floats(0.1, 64))
    return make_spec(rank=draw(st.integers(1, 4)), alpha=alpha, modules=modules, heads=heads)


@st.composite
def states(draw: st.DrawFn, spec: AdapterSpec, *, floats: st.SearchStrategy = WIDE) -> AdapterState:
    """Adapters of a specification, of any finite values unless told otherwise."""
    values = draw(st.lists(floats, min_size=spec.size, max_size=spec.size))
    return AdapterState(spec=spec, values=torch.tensor(values, dtype=torch.float32))


@st.composite
def updates(
    draw: st.DrawFn, spec: AdapterSpec, *, floats: st.SearchStrategy = WIDE
) -> AdapterUpdate:
    """Updates of a specification, of any finite values unless told otherwise."""
    state, examples = draw(states(spec, floats=floats)), draw(st.integers(1, 2**32))
    return AdapterUpdate(spec=spec, values=state.values, num_examples=examples)
