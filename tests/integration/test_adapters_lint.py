"""Lint, pad and export on the command line, over adapters that PEFT itself wrote."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from fedlora.training.base_model.network import quietly
from simulations.published import Scene
from tests.tiny_models import new_llama

BASE = "org/tiny"
PLAIN = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]}
WRITTEN: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "plain": ({}, "loads it"),
    "uneven": (
        {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"v_proj": 2}},
        "modules are of rank 2, 4, and r is 2",
    ),
    "stable": ({"r": 3, "use_rslora": True}, "use_rslora"),
    "pattern": ({"target_modules": r".*\.self_attn\.[qv]_proj"}, "target_modules is a pattern"),
    "magnitudes": ({"use_dora": True}, "DoRA"),
    "biases": ({"bias": "lora_only"}, "bias is 'lora_only'"),
    "whole": ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    "half layers": ({"layers_to_transform": [1]}, "not all layers are adapted"),
    "altered": ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
}
PADDABLE = ("plain", "uneven", "stable", "pattern")


@pytest.fixture
def written(tmp_path: Path) -> Any:
    """Have PEFT write an adapter with random factors."""

    def write(kind: str) -> Path:
        options = PLAIN | WRITTEN[kind][0]
        with quietly():
            model = get_peft_model(new_llama(BASE), LoraConfig(task_type="CAUSAL_LM", **options))
            torch.manual_seed(1)
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(parameter)
            model.save_pretrained(tmp_path / kind, save_embedding_layers=False)
        return tmp_path / kind

    return write


def changes(folder: Path) -> dict[str, Tensor]:
    """Return the change to each weight that PEFT makes, in float64."""
    with quietly():
        model = PeftModel.from_pretrained(new_llama(BASE), folder).double()
    return {
        name: module.get_delta_weight("default").detach()
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }


@pytest.mark.parametrize("kind", WRITTEN)
def test_what_peft_writes_is_read_and_judged(kind, written, command_line) -> None:
    """The exit code is 0 for plain LoRA alone; the reason is told otherwise."""
    code, said, error = command_line("adapters", "lint", written(kind))

    assert WRITTEN[kind][1] in said
    assert (code, error) == (int(kind != "plain"), "")


@pytest.mark.parametrize("kind", PADDABLE)
def test_a_padded_adapter_is_loaded_by_all_and_changes_the_same(
    kind, written, command_line, tmp_path
) -> None:
    """By PEFT's own count; on each engine's lint."""
    folder, out = written(kind), tmp_path / "padded"
    code, said, _ = command_line("adapters", "pad", folder, "--rank", "8", "--out", out)
    assert (code, f"{out}: rank 8, alpha" in said) == (0, True)
    assert command_line("adapters", "lint", out)[0] == 0

    before, after = changes(folder), changes(out)
    assert before.keys() == after.keys()
    for module, change in before.items():
        torch.testing.assert_close(after[module], change, rtol=1e-5, atol=1e-6)


def test_a_lower_rank_and_a_taken_folder_are_refused(written, command_line, tmp_path) -> None:
    """The error names the command that finds the best adapter of a lower rank."""
    folder = written("plain")
    code, _, error = command_line("adapters", "pad", folder, "--rank", "1", "--out", tmp_path / "x")
    assert (code, "fedlora adapters combine" in error) == (2, True)
    code, _, error = command_line("adapters", "pad", folder, "--out", folder)
    assert (code, "it is already there" in error) == (2, True)


def test_engines_and_their_options_are_chosen(written, command_line) -> None:
    """Of those named alone the table tells; what they are started with decides."""
    folder = written("stable")
    code, said, _ = command_line("adapters", "lint", folder, "--for", "vllm, lorax")
    assert (code, "sglang" in said) == (0, False)

    arguments = ("--for", "vllm", "--max-lora-rank", "1", "--base-model", "org/other")
    code, said, _ = command_line("adapters", "lint", folder, *arguments)
    assert (code, "rank 3 is above --max-lora-rank 1; it needs 8" in said) == (1, True)
    assert "it is for org/tiny, not org/other" in said

    code, _, error = command_line("adapters", "lint", folder, "--for", "vlm")
    assert (code, "vlm" in error) == (2, True)


def test_a_release_is_exported_after_it_was_verified(command_line, tmp_path) -> None:
    """A changed one goes nowhere; options of another place are no silent whim."""
    scene = Scene.new(tmp_path)
    folder, out = scene.publish().folder, tmp_path / "out"
    to_ollama = (
        "adapters",
        "export",
        folder,
        out,
        "--to",
        "ollama",
        "--registry",
        scene.store.path,
    )

    code, said, _ = command_line(*to_ollama, "--base", "llama3.1:8b")
    assert (code, said) == (0, f"ollama create demo -f {out / 'Modelfile'}\n")
    code, _, error = command_line(*to_ollama)
    assert (code, "it is already there" in error) == (2, True)
    code, _, error = command_line(*to_ollama, "--public")
    assert (code, "--public is for --to hub" in error) == (2, True)
    (folder / "README.md").write_text("# other\n", encoding="utf-8")
    code, _, error = command_line(*to_ollama)
    assert (code, "this is not what was published" in error) == (2, True)
