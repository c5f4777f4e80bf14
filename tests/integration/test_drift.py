"""Whole runs whose sites are kept from drifting."""

import json

import pytest
import torch

from fedlora.adapter import AdapterUpdate
from fedlora.runtime import simulation
from fedlora.runtime.events import UpdateSettled
from fedlora.runtime.plan import plan
from fedlora.runtime.run_folder import RunFolder
from fedlora.runtime.site.site import Site
from fedlora.training.local import LocalResult

HELD = (
    "federation={method: freeze-a, rounds: 3, local_steps: 2, server_momentum: 0, "
    "drift_correction: true, proximal_mu: 0.1}"
)
PRIVATE = (
    "privacy={unit: example, epsilon: 8, delta: 1e-3, records: 20}",
    "federation.evaluate_every=0",
)


def play(recipe, folder) -> RunFolder:
    run = simulation.start(plan(recipe), runs=folder)
    simulation.simulate(run, observe=lambda _: None)
    return run


def adapter_bytes(run: RunFolder) -> bytes:
    return (run.release / "adapter_model.safetensors").read_bytes()


def remembered(run: RunFolder) -> dict[str, bytes]:
    paths = run.path.glob("sites/*/runs/*/direction-*")
    return {f"{path.parts[-4]}/{path.name}": path.read_bytes() for path in paths}


def test_a_stopped_run_is_corrected_to_the_same_bits(small_recipe, tmp_path):
    """One site of round 3 had trained and remembered it; the other trains after the stop."""
    whole = play(small_recipe(HELD), tmp_path / "whole")
    run, settled = simulation.start(plan(small_recipe(HELD)), runs=tmp_path / "stopped"), []

    def stop(event):
        settled.extend([event] if isinstance(event, UpdateSettled) else [])
        if len(settled) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulation.simulate(run, observe=stop)
    simulation.simulate(RunFolder.open(run.path), observe=lambda _: None)
    assert adapter_bytes(whole) == adapter_bytes(run)
    assert remembered(whole) == remembered(run)
    assert len(remembered(run)) == 6


@pytest.mark.parametrize("key", ["drift_correction: true", "proximal_mu: 0.1"])
def test_each_term_changes_what_is_learned(small_recipe, tmp_path, key):
    """Or it would be idle."""
    other = "drift_correction: false" if key.startswith("drift") else "proximal_mu: 0"
    with_it, without = (
        play(small_recipe(HELD.replace(key, each)), tmp_path / str(n))
        for n, each in enumerate([key, other])
    )
    assert adapter_bytes(with_it) != adapter_bytes(without)


def test_under_privacy_what_is_remembered_follows_from_what_was_noised(
    small_recipe, tmp_path, monkeypatch, sites
):
    """Where private training gives the same, sites with other rows remember the same bytes."""

    def trained(self, received, *, number, mechanism, source, correction):
        part = received.spec.part("B")
        moved = 0.01 * torch.randn(part.size, generator=torch.Generator().manual_seed(number))
        state = received.plus(AdapterUpdate(spec=part, values=moved, num_examples=8))
        return LocalResult(state=state, losses=[1.0], examples=8, tokens=8)

    monkeypatch.setattr(Site, "train_round_privately", trained)
    recipe = small_recipe(HELD, *PRIVATE)
    first = play(recipe, tmp_path / "first")
    for path in sites.values():
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        other = [{**row, "completion": row["completion"][::-1]} for row in rows]
        path.write_text("\n".join(map(json.dumps, other)), encoding="utf-8")
    second = play(recipe, tmp_path / "second")
    assert remembered(first) == remembered(second)
    assert len(remembered(first)) == 6


def test_a_private_run_can_be_held(small_recipe, tmp_path):
    """With noise of its own, and a correction from the second round on."""
    run = play(small_recipe(HELD, *PRIVATE), tmp_path)
    assert [len(record["folded"]) for record in run.records()] == [0, 2, 2, 2]
    assert len(remembered(run)) == 6
