"""The lint finds what engines stumble over, in any PEFT folder, and says what each does."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedlora.errors import AdapterError, ReleaseError
from fedlora.peft_config import CONFIG
from fedlora.peft_folder import WEIGHTS, write_peft_folder
from fedlora.release.engines.lint import UNSEEN, Report, lint, require_loadable
from fedlora.release.engines.rule import ENGINES
from fedlora.release.engines.rules import RULES
from fedlora.release.engines.traits import Options
from tests.strategies import HEADS, make_spec, make_state

LAYER = "base_model.model.model.layers.0.self_attn"
A, B = f"{LAYER}.q_proj.lora_A.weight", f"{LAYER}.q_proj.lora_B.weight"
EMBEDDINGS = "base_model.model.model.embed_tokens"
R, X, W, L = "refuses", "wrong results", "warns", None  # loads it, and right


def modules(*kinds: str, side: int = 16) -> dict[str, tuple[int, int]]:
    """Return square modules of these kinds in each of two layers."""
    return {f"model.layers.{i}.self_attn.{k}": (side, side) for i in range(2) for k in kinds}


FUSED = modules("q_proj", "k_proj", "v_proj")


class Case(NamedTuple):
    """An adapter with something about it, and what each engine does with it."""

    verdicts: tuple[str | None, ...]
    """Of vLLM, LoRAX, SGLang and Ollama."""
    options: Mapping[str, Any] = {}
    drop: tuple[str, ...] = ()
    alter: Callable[[dict[str, Tensor]], object] | None = None
    files: Mapping[str, bytes] = {}
    lose_weights: bool = False
    modules: Mapping[str, tuple[int, int]] = FUSED
    rank: int = 2
    engine: Options = Options()


def add(name: str, *shape: int) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors.update({name: torch.ones(shape)})


def narrow(tensors: dict[str, Tensor]) -> None:
    tensors[A], tensors[B] = tensors[A][:1].clone(), tensors[B][:, :1].clone()


def to_double(tensors: dict[str, Tensor]) -> None:
    tensors[A] = tensors[A].double()


def remove_b(tensors: dict[str, Tensor]) -> None:
    del tensors[B]


def lose_layer(tensors: dict[str, Tensor]) -> None:
    del tensors[A], tensors[B]


CASES: Mapping[str, Case] = {
    "other_method": Case((R, R, R, R), {"peft_type": "IA3"}),
    "missing_options": Case((R, X, R, X), drop=("r",)),
    "no_weights": Case((R, R, R, R), lose_weights=True),
    "pickled": Case((W, R, W, R), files={"adapter_model.bin": b"not opened"}, lose_weights=True),
    "more_weights": Case((L, X, X, X), files={"new_embeddings.safetensors": b"x"}),
    "half_pairs": Case((R, X, X, R), alter=remove_b),
    "uneven_ranks": Case((X, X, X, L), {"rank_pattern": {"q_proj": 1}}, alter=narrow),
    "uneven_alphas": Case((X, X, X, X), {"alpha_pattern": {"q_proj": 8}}),
    "rank_stabilised": Case((L, L, X, X), {"use_rslora": True}),
    "fractional_alpha": Case((L, L, L, R), {"lora_alpha": 16.0}),
    "above_vllm_rank": Case((R, L, L, L), rank=32, modules=modules("q_proj", "v_proj", side=64)),
    "above_sglang_rank": Case((R, L, R, L), rank=16, engine=Options(max_lora_rank=8)),
    "odd_lorax_rank": Case((L, W, L, L), rank=12),
    "dora": Case((R, X, R, R), {"use_dora": True}, alter=add(f"{LAYER}.lora_magnitude_vector", 2)),
    "bias": Case((R, X, X, R), {"bias": "lora_only"}, alter=add(f"{LAYER}.q_proj.bias", 2)),
    "whole_modules": Case((R, X, X, R), {"modules_to_save": ["lm_head"]}),
    "embeddings": Case((W, W, W, R), alter=add(f"{EMBEDDINGS}.base_layer.weight", 2, 2)),
    "other_tensors": Case((R, X, X, R), alter=add(f"{EMBEDDINGS}.weight", 2, 2)),
    "altered_base": Case((R, X, X, X), {"init_lora_weights": "pissa_niter_16"}),
    "other_mathematics": Case((R, X, X, X), {"alora_invocation_tokens": [1, 2]}),
    "module_pattern": Case((L, L, R, L), {"target_modules": r".*\.[qkv]_proj"}),
    "missing_layers": Case((L, X, X, L), alter=lose_layer),
    "query_without_value": Case((L, L, R, L), modules=modules("q_proj", "k_proj")),
    "orphans": Case((L, L, X, L), modules=modules("v_proj")),
    "modules_unknown_to_ollama": Case((L, L, L, R), modules=modules("q_proj", "v_proj", "lm_head")),
    "wide_rank": Case((L, L, L, R), modules=modules("q_proj", "v_proj", side=1)),
    "odd_dtypes": Case((L, L, L, R), alter=to_double),
    "added_tokens": Case((L, L, R, L), files={"added_tokens.json": b"{}"}),
    "tokenizer": Case((L, W, L, L), files={"tokenizer.json": b"{}"}),
    "local_base": Case((W, W, L, L), {"base_model_name_or_path": "/models/llama"}),
    "other_base": Case((R, W, W, W), engine=Options(base_model="org/other")),
}


def made(case: Case, folder: Path) -> Path:
    spec = make_spec(rank=case.rank, alpha=4.0, modules=dict(case.modules))
    write_peft_folder(make_state(spec), folder)
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8")) | case.options
    config = {key: value for key, value in config.items() if key not in case.drop}
    (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")
    if case.alter:
        tensors = load_file(folder / WEIGHTS)
        case.alter(tensors)
        save_file(tensors, folder / WEIGHTS)
    for name, content in case.files.items():
        (folder / name).write_bytes(content)
    if case.lose_weights:
        (folder / WEIGHTS).unlink()
    return folder


def verdicts(report: Report) -> tuple[str | None, ...]:
    return tuple(map(report.verdict, ENGINES))


def test_every_rule_has_a_case() -> None:
    """Which shows it found, and nothing else with it that is worse."""
    assert {rule.find.__name__ for rule in RULES} == CASES.keys()
    assert set(UNSEEN) == set(ENGINES)


@pytest.mark.parametrize("name", CASES)
def test_an_engine_does_what_its_rule_says(name: str, tmp_path: Path) -> None:
    """Each engine's verdict follows from the one thing that is wrong."""
    case = CASES[name]
    report = lint(made(case, tmp_path / "adapter"), options=case.engine)

    rule = next(rule for rule in RULES if rule.find.__name__ == name)
    assert rule.advice in {finding.advice for finding in report.findings}
    assert all(f.found[0].islower() or f.found.startswith("DoRA") for f in report.findings)
    assert verdicts(report) == case.verdicts
    assert report.all_load_it is not bool({R, X} & set(case.verdicts))


def test_plain_adapters_are_loaded_by_all(tmp_path: Path) -> None:
    """What fedlora writes gives nothing to find."""
    report = lint(made(Case((L, L, L, L)), tmp_path / "adapter"), options=Options())

    assert (report.findings, report.all_load_it) == ([], True)


def test_a_head_is_what_engines_do_not_serve(tmp_path: Path) -> None:
    """What fedlora writes of a classifier is found as modules that were trained whole."""
    write_peft_folder(make_state(make_spec(heads=HEADS)), tmp_path / "adapter")
    report = lint(tmp_path / "adapter", options=Options())

    [finding] = [each for each in report.findings if each.found.startswith("modules_to_save is")]
    assert tuple(finding.engines[engine].severity for engine in ENGINES) == (R, X, X, R)


def test_engines_that_are_not_asked_for_are_not_judged(tmp_path: Path) -> None:
    """Findings that concern others are left out."""
    folder = made(CASES["rank_stabilised"], tmp_path / "adapter")

    assert lint(folder, engines={"vllm"}, options=Options()).findings == []
    assert lint(folder, engines={"sglang", "vllm"}, options=Options()).engines == ["vllm", "sglang"]


def test_the_rank_that_vllm_needs_is_named(tmp_path: Path) -> None:
    """Its --max-lora-rank takes few values."""
    folder = made(CASES["above_vllm_rank"], tmp_path / "adapter")
    [finding] = lint(folder, options=Options()).findings

    assert finding.found == "rank 32 is above --max-lora-rank 16; it needs 32"
    assert lint(folder, options=Options(max_lora_rank=32)).findings == []


def test_what_is_no_adapter_is_refused(tmp_path: Path) -> None:
    """A folder without a configuration, and weights that are no safetensors."""
    with pytest.raises(AdapterError, match=r"adapter_config\.json"):
        lint(tmp_path, options=Options())
    folder = made(Case(()), tmp_path / "adapter")
    (folder / WEIGHTS).write_bytes(b"\x80\x04pickle, in truth")
    with pytest.raises(AdapterError, match="not plausible"):
        lint(folder, options=Options())


READ = (
    "r", "lora_alpha", "rank_pattern", "alpha_pattern", "bias", "target_modules",
    "modules_to_save", "init_lora_weights",
)  # fmt: skip


@pytest.mark.parametrize("key", READ)
@pytest.mark.parametrize("value", [None, [], {}, "x", -1, True, [None], {"a": None}], ids=repr)
def test_odd_values_are_no_crash(key: str, value: object, tmp_path: Path) -> None:
    """A configuration can say anything; the report may be of anything but an error."""
    report = lint(made(Case((), {key: value}), tmp_path / "adapter"), options=Options())

    assert set(verdicts(report)) <= {R, X, W, L}


def test_a_layer_s_number_takes_no_memory(tmp_path: Path) -> None:
    """A small file of a stranger's can name any."""
    layer = 10**15
    case = Case((), modules={f"model.layers.{layer}.self_attn.q_proj": (8, 8)})
    report = lint(made(case, tmp_path / "adapter"), options=Options())

    assert "not all layers are adapted" in " ".join(finding.found for finding in report.findings)


def test_a_strangers_text_is_no_control_code(tmp_path: Path) -> None:
    """A terminal that prints the report does what its owner wants."""
    escape = "\x1b]0;owned\x07"
    options = {"base_model_name_or_path": f"/{escape}", "target_modules": escape, "bias": escape}
    case = Case((), options, files={f"{escape}.safetensors": b""}, alter=add(escape, 1))
    report = lint(made(case, tmp_path / "adapter"), options=Options())

    assert len(report.findings) >= 4
    assert "".join(finding.found for finding in report.findings).isprintable()


def test_one_engine_can_be_required(tmp_path: Path) -> None:
    """The error says what was found and where to read more; warnings are none."""
    require_loadable(made(CASES["odd_lorax_rank"], tmp_path / "odd"), "lorax")
    folder = made(CASES["fractional_alpha"], tmp_path / "adapter")

    require_loadable(folder, "vllm")
    with pytest.raises(ReleaseError, match=r"lora_alpha is 16\.0.*lint .* --for ollama"):
        require_loadable(folder, "ollama")
