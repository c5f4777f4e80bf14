"""A difference of adapters is one of what they change, and of what their manifests say."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedlora import products
from fedlora.adapter import AdapterState
from fedlora.errors import AdapterError
from fedlora.peft_folder import write_peft_folder
from fedlora.release.diff import diff, distances
from fedlora.release.manifest import MANIFEST, Base, Evaluation, Loss, Privacy
from simulations.published import MODULES, adapter, manifest_of
from tests.strategies import make_state


def dense(state: AdapterState) -> dict[str, torch.Tensor]:
    """Return each module's change, formed."""
    return {
        module: state.spec.scaling * (up.double() @ down.double())
        for module, down, up in state.pairs()
    }


def test_distances_are_those_of_the_dense_changes():
    """Norms, distance and cosine, over all modules and of each, for different ranks and alphas."""
    a = adapter(0)
    wide = a.spec.part(rank=3)
    b = make_state(replace(wide, alpha=5.0), seed=1)
    whole, modules = distances(a, b)
    one, two = dense(a), dense(b)
    flat = [torch.cat([change.flatten() for change in each.values()]) for each in (one, two)]
    pairs = {None: (whole, *flat)} | {m: (modules[m], one[m], two[m]) for m in MODULES}
    for found, left, right in pairs.values():
        assert math.isclose(found.a, left.norm())
        assert math.isclose(found.b, right.norm())
        assert math.isclose(found.apart, (left - right).norm())
        assert math.isclose(found.relative, (left - right).norm() / left.norm())
        cosine = (left * right).sum() / (left.norm() * right.norm())
        assert math.isclose(found.cosine, cosine, abs_tol=1e-12)
    apart = [each.apart for each in modules.values()]
    assert apart == sorted(apart, reverse=True)


def test_other_factors_of_the_same_products_are_no_difference():
    """Balanced factors are others, and change the same."""
    a = adapter(0)
    b = products.balanced(a)
    assert not torch.equal(a.values, b.values)
    whole, _ = distances(a, b)
    assert whole.relative < 1e-6
    assert math.isclose(whole.cosine, 1)


def test_a_module_that_one_lacks_counts_as_zero():
    """All of the other's change is distance there; an angle there is none."""
    a = adapter(0)
    few = replace(a.spec, tensors=a.spec.tensors[:2])
    b = AdapterState(spec=few, values=a.values[: few.size])
    whole, modules = distances(a, b)
    first, lost = modules.values()
    assert (first.a, first.b, first.cosine) == (first.apart, 0.0, None)
    assert lost.apart == 0
    assert math.isclose(whole.apart, first.a)
    _, back = distances(b, a)
    assert math.isinf(next(iter(back.values())).relative)


def test_an_adapter_does_not_differ_from_itself(tmp_path):
    """Nothing is apart, and no field differs."""
    write_release(tmp_path / "a", adapter(0))
    found = diff(tmp_path / "a", tmp_path / "a")
    assert (found.whole.apart, found.fields) == (0.0, {})


def write_release(folder: Path, state: AdapterState, **changed) -> None:
    """Write a release that nobody signed."""
    write_peft_folder(state, folder)
    (folder / MANIFEST).write_bytes(manifest_of(folder, **changed).to_json())


def test_fields_that_differ_are_told_by_their_paths(tmp_path):
    """What one lacks is None; files and times differ anyway and are left out."""
    privacy = Privacy(unit="example", epsilon=8.0, delta=1e-6, statement=("A promise.",))
    loss = Evaluation(held_out=Loss(base=3.0, adapter=2.5))
    write_release(tmp_path / "a", adapter(0), created="2026-01-01T00:00:00Z")
    write_release(
        tmp_path / "b", adapter(1), created="2026-02-01T00:00:00Z", privacy=privacy, evaluation=loss
    )
    assert diff(tmp_path / "a", tmp_path / "b").fields == {
        "evaluation.held_out.adapter": (None, 2.5),
        "evaluation.held_out.base": (None, 3.0),
        "privacy.delta": (None, 1e-6),
        "privacy.epsilon": (None, 8.0),
        "privacy.statement": (["No differential privacy was applied."], ["A promise."]),
        "privacy.unit": ("none", "example"),
    }


def test_adapters_of_different_bases_have_no_distance(tmp_path):
    """By the manifests' digests, or by name where one has no manifest."""
    write_release(tmp_path / "a", adapter(0))
    write_release(tmp_path / "b", adapter(1), base=Base(name="embedded", digest="cd" * 32))
    with pytest.raises(AdapterError, match=r"one base model.*abababababab.*cdcdcdcdcdcd"):
        diff(tmp_path / "a", tmp_path / "b")
    bare = make_state(replace(adapter(0).spec, base_model="org/other"), seed=3)
    write_peft_folder(bare, tmp_path / "c")
    with pytest.raises(AdapterError, match="'embedded' and 'org/other'"):
        diff(tmp_path / "a", tmp_path / "c")
    named = diff(tmp_path / "a", tmp_path / "c", base_model="embedded")
    assert named.whole.relative > 0.1
    assert named.fields == {}
