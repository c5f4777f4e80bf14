"""Error feedback: what is rounded away in one round arrives in a later one."""

import pytest
import torch

from fedlora.adapter import AdapterUpdate
from fedlora.recipe import Recipe
from fedlora.runtime.site.error_feedback import add_lost, keep_lost
from fedlora.runtime.site.memory import FOLDER, SiteMemory
from fedlora.wire.encodings import rounded
from tests.strategies import copy_of, make_spec, make_update

SPEC = make_spec(rank=4, modules={"m.up_proj": (40, 30)})
KEEPS = ("federation.method=average", "federation.server_momentum=0", "wire.codec=nf4")


def arrived(updates: list[AdapterUpdate], *overrides: str) -> torch.Tensor:
    """Return the sum of what the aggregator decodes in as many rounds."""
    recipe = Recipe.from_yaml("{datasets: [{path: x}], privacy: {unit: none}}", overrides=overrides)
    memory, total = SiteMemory("hospital", "run-1"), torch.zeros(SPEC.size)
    for number, update in enumerate(updates, start=1):
        sent = add_lost(copy_of(update), recipe, memory, number=number)
        keep_lost(sent, recipe, memory, number=number)
        total += rounded(sent.values, SPEC, codec=recipe.wire.codec)
    return total


def test_over_rounds_only_the_last_rounding_is_lost(tmp_path, monkeypatch):
    """Twenty rounds lose hardly more than one, and far less than without feedback."""
    monkeypatch.setenv(FOLDER, str(tmp_path))
    updates = [make_update(SPEC, seed=seed) for seed in range(20)]
    target = sum(update.values for update in updates)
    one = torch.dist(arrived(updates[:1], *KEEPS), updates[0].values)
    many = torch.dist(arrived(updates, *KEEPS), target)
    without = torch.dist(arrived(updates, "wire.codec=nf4"), target)
    assert many < 2 * one
    assert many < 0.5 * without


@pytest.mark.parametrize(
    "overrides",
    [
        ("wire.codec=nf4",),
        (*KEEPS, "wire.codec=int8"),
        (*KEEPS, "wire.codec=fp32"),
        (
            *KEEPS,
            "federation.evaluate_every=0",
            "privacy={unit: client, epsilon: 8, delta: 1e-5, clip_norm: 1}",
        ),
    ],
)
def test_where_values_change_their_meaning_or_little_is_lost_nothing_is_kept(
    tmp_path, monkeypatch, overrides
):
    """Nor where it would tell of earlier rounds; the site needs no memory for it."""
    monkeypatch.setenv(FOLDER, str(tmp_path))
    arrived([make_update(SPEC)], *overrides)
    assert list(tmp_path.iterdir()) == []
