"""From a run to a model: what is published, pulled and merged computes what was aggregated."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from fedlora.adapter import AdapterState
from fedlora.peft_folder import read_peft_folder
from fedlora.release.folder import Release, verify
from fedlora.release.home import ENVIRONMENT, target_of
from fedlora.release.reference import unverified
from fedlora.release.registry_file import RegistryFile
from fedlora.runtime import simulation
from fedlora.runtime.plan import plan
from fedlora.runtime.run_folder import RunFolder
from fedlora.training.base_model import BaseModel, resolve
from simulations.published import Scene
from tests.registry import Authority, served

IDS = torch.arange(5, 69).view(2, 32)
EMBEDDED = resolve("embedded", None)
EVERYWHERE = torch.ones_like(IDS, dtype=torch.bool)


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    """A publisher with a store, and a reader with a home."""
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "home"))
    return Scene.new(tmp_path)


@pytest.fixture
def run(small_recipe, tmp_path: Path) -> RunFolder:
    """A run whose adapter has learned something."""
    run = simulation.start(plan(small_recipe("federation.local_steps=5")), runs=tmp_path / "runs")
    simulation.simulate(run, observe=lambda _: None)
    return run


def publish(scene: Scene, run: RunFolder) -> Release:
    """Publish a run's release as it drafted it."""
    return scene.publisher.publish(run.release, unverified(run.release))


def network(folder: Path = EMBEDDED) -> PreTrainedModel:
    """Return a model in float32 as transformers loads it, with the attention that ours has."""
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )


def unmerged(run: RunFolder) -> PeftModel:
    """Return the base in float32 with a run's adapter beside it."""
    return PeftModel.from_pretrained(network(), run.release)


def logits(model: PreTrainedModel | PeftModel) -> Tensor:
    """Return what a model computes, ``(tokens, vocabulary)``."""
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits.flatten(0, 1)


def as_aggregated(run: RunFolder) -> tuple[AdapterState, Tensor]:
    """Return the aggregator's adapter, and what our own base computes with it."""
    adapter = run.load().adapter
    base = BaseModel.load(run.recipe())
    base.load_adapter(adapter)
    base.model.eval()
    with torch.no_grad():
        return adapter, base.logits(IDS, keep=EVERYWHERE)


def test_what_is_pulled_is_what_was_aggregated(run, scene, tmp_path, command_line):
    """Over a registry with TLS; bit for bit, and PEFT's logits to 1e-6 of the aggregator's adapter.

    The publisher's registry file is all that the reader has.
    """
    adapter, expected = as_aggregated(run)
    authority, into = Authority(tmp_path / "ca"), tmp_path / "pulled"
    with served(scene.store, tls=authority.pair("registry")) as registry:
        ca = authority.certificate.read_text(encoding="ascii")
        RegistryFile(
            publisher=scene.signer.public.text, address=registry.address, ca_certificate=ca
        ).write(tmp_path / "registry.yaml")
        target, _ = target_of(tmp_path / "registry.yaml")
        published = scene.publisher_at(target).publish(run.release, unverified(run.release))
        told = "--registry", tmp_path / "registry.yaml", "--into", into
        assert command_line("adapters", "pull", "small", *told)[0] == 0
    pulled = verify(into, key=scene.signer.public)
    assert pulled.id == published.id
    assert torch.equal(read_peft_folder(pulled.folder).values, adapter.values)
    computed = logits(PeftModel.from_pretrained(network(), pulled.folder))
    torch.testing.assert_close(computed, expected, rtol=0, atol=1e-6)
    assert (computed - logits(network())).abs().max() > 0.1


def test_merged_is_unmerged(run, scene, tmp_path, command_line):
    """Logits to 1e-5 of the unmerged model's, and the weights are those of PEFT's own merge.

    Float32 adds errors of its own where logits are near 20; in float64 the weights' alone are left.
    """
    publish(scene, run)
    out, key = tmp_path / "merged", scene.path / "publisher.key"
    code, said, errors = command_line(
        "adapters", "merge", "small@latest", "--base", "embedded", "--out", out,
        "--dtype", "float32", "--sign", key, "--registry", scene.store.path,
    )  # fmt: skip
    assert (code, errors) == (0, "")
    release = verify(out, key=scene.signer.public)
    assert release.id in said
    in_float32 = logits(network(out)), logits(unmerged(run))
    assert torch.dist(*in_float32) < 1e-5 * in_float32[1].norm()
    merged, expected = logits(network(out).double()), logits(unmerged(run).double())
    torch.testing.assert_close(merged, expected, rtol=0, atol=1e-5)
    by_peft = unmerged(run).merge_and_unload(safe_merge=True).state_dict()
    for name, weight in load_file(out / "model.safetensors").items():
        torch.testing.assert_close(weight, by_peft[name], rtol=0, atol=1e-6)


def test_chat_and_diff_of_two_rounds(small_recipe, scene, tmp_path, command_line):
    """Two releases of one name answer side by side, and their distance is told."""
    for seed in (0, 1):
        recipe = small_recipe("federation.rounds=1", f"seed={seed}")
        run = simulation.start(plan(recipe), runs=tmp_path / "runs")
        simulation.simulate(run, observe=lambda _: None)
        publish(scene, run)
    first, second = scene.publisher.index("small").in_order
    registry = "--registry", scene.store.path
    before, after = f"small@{first[:8]}", "small@latest"
    code, said, _ = command_line(
        "chat", before, "--against", after, "--ask", "What is a fig?", "--max-new-tokens", 8,
        *registry,
    )  # fmt: skip
    assert code == 0
    for text in ("What is a fig?", "base", before, second[:8]):
        assert text in said
    code, said, _ = command_line("adapters", "diff", before, after, "--modules", 3, *registry)
    assert code == 0
    assert "cosine" in said
    assert len([line for line in said.splitlines() if line.startswith("model.layers.")]) == 3
