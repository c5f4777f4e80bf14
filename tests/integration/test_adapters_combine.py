"""Adapters that PEFT made, combined on the command line; PEFT loads what comes out."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedlora.training.base_model.network import quietly
from tests.tiny_models import new_llama

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BASE = "org/tiny"
IDS = torch.arange(3, 23).view(2, 10)

EVERYTHING = ["q_proj", "v_proj", "up_proj", "down_proj"]
KINDS: Mapping[str, Mapping[str, Any]] = {
    "small": {"r": 2, "lora_alpha": 4, "target_modules": EVERYTHING},
    "large": {"r": 8, "lora_alpha": 8, "target_modules": EVERYTHING},
    "twin": {"r": 2, "lora_alpha": 4, "target_modules": EVERYTHING},
    "stable": {"r": 3, "lora_alpha": 2, "target_modules": EVERYTHING, "use_rslora": True},
    "few": {"r": 4, "lora_alpha": 4, "target_modules": ["q_proj", "o_proj"]},
    "one layer": {
        "r": 2, "lora_alpha": 4, "target_modules": EVERYTHING, "layers_to_transform": [1],
    },
    "by pattern": {"r": 2, "lora_alpha": 4, "target_modules": r".*\.0\.self_attn\.[qv]_proj"},
    "uneven": {
        "r": 2, "lora_alpha": 4, "target_modules": EVERYTHING,
        "rank_pattern": {"layers.1.mlp.up_proj": 5, "q_proj": 1},
        "alpha_pattern": {"^model.layers.0.mlp.down_proj": 6, "self_attn.q_proj": 1},
    },
}  # fmt: skip


def make(folder: Path, kind: str, *, narrow: bool = False) -> Path:
    """Have PEFT write an adapter with random A and B."""
    base = new_llama(BASE)
    torch.manual_seed(list(KINDS).index(kind))
    config = LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **KINDS[kind])
    with quietly():
        model = get_peft_model(base, config)
        if narrow:
            model = model.to(torch.bfloat16)
        model.save_pretrained(folder / kind, save_embedding_layers=False)  # it would ask the hub
    return folder / kind


def changes(folder: Path) -> dict[str, Tensor]:
    """Return the change to each weight that PEFT makes, in float64."""
    with quietly():
        model = PeftModel.from_pretrained(new_llama(BASE), folder).double()
    return {
        name.removeprefix("base_model.model."): module.get_delta_weight("default").detach()
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }


def mean_of(folders: Sequence[Path], weights: Sequence[float]) -> dict[str, Tensor]:
    """Return the weighted mean of the changes, as dense matrices."""
    mean: dict[str, Tensor] = {}
    for folder, weight in zip(folders, weights, strict=True):
        for module, change in changes(folder).items():
            mean[module] = mean.get(module, 0) + change * weight / sum(weights)
    return mean


def best_of(mean: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
    """Return each matrix's best approximation of ``rank``, by a dense decomposition."""
    best = {}
    for module, matrix in mean.items():
        u, singular, vh = torch.linalg.svd(matrix, full_matrices=False)
        best[module] = (u[:, :rank] * singular[:rank]) @ vh[:rank]
    return best


def norm(matrices: Mapping[str, Tensor]) -> float:
    return float(torch.stack([matrix.square().sum() for matrix in matrices.values()]).sum().sqrt())


def distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    zero = torch.zeros(())
    return norm({module: a.get(module, zero) - b.get(module, zero) for module in {*a, *b}})


@pytest.fixture
def combine(command_line, monkeypatch, tmp_path):
    """Run ``fedlora adapters combine``; return exit code, output and errors."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")
    return partial(command_line, "adapters", "combine")


def alter(folder: Path, **keys: Any) -> None:
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    (folder / CONFIG).write_text(json.dumps(config | keys), encoding="utf-8")


# What comes out


@pytest.mark.parametrize("kind", KINDS)
def test_one_adapter_means_what_peft_means_by_it(combine, tmp_path, kind):
    """Any kind of plain LoRA folder keeps its change to each weight, and to the logits."""
    folder = make(tmp_path, kind)
    assert combine(folder, "--out", "out")[0] == 0
    assert distance(changes(Path("out")), changes(folder)) < 1e-6 * norm(changes(folder))
    with quietly(), torch.no_grad():
        was, now = (
            PeftModel.from_pretrained(new_llama(BASE), path)(input_ids=IDS).logits
            for path in (folder, "out")
        )
        assert not torch.allclose(was, new_llama(BASE)(input_ids=IDS).logits, atol=1e-2)
    torch.testing.assert_close(now, was, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("weights", ["2,1,1", "1,-0.5,1", "-1,3,0"])
@pytest.mark.parametrize("rank", [1, 4, 8])
def test_product_is_the_best_of_its_rank(combine, tmp_path, weights, rank):
    """Within 1e-6 of the dense optimum, for other ranks, alphas and modules, and any signs."""
    folders = [make(tmp_path, kind) for kind in ("small", "large", "few")]
    mean = mean_of(folders, [float(weight) for weight in weights.split(",")])
    code, _, err = combine(*folders, "--weights", weights, "--rank", rank, "--out", "out")
    assert (code, err) == (0, "")
    optimum = distance(best_of(mean, rank), mean)
    assert distance(changes(Path("out")), mean) <= optimum + 1e-6 * norm(mean)


def test_product_has_the_largest_rank_and_the_first_scaling(combine, tmp_path):
    """By default, with the modules of all; equal weights are the default too."""
    folders = [make(tmp_path, kind) for kind in ("small", "large", "few")]
    code, _, _ = combine(*folders, "--out", "out")
    config = json.loads(Path("out", CONFIG).read_text(encoding="utf-8"))
    assert code == 0
    assert (config["r"], config["lora_alpha"]) == (8, 16)
    assert config["target_modules"] == sorted({*EVERYTHING, "o_proj"})
    assert config["base_model_name_or_path"] == BASE
    assert distance(changes(Path("out")), best_of(mean_of(folders, [1, 1, 1]), 8)) < 1e-6 * norm(
        changes(Path("out"))
    )


def test_modules_that_are_not_adapted_stay_so(combine, tmp_path):
    """Adapters of single layers keep PEFT from adapting others, where names alone would not."""
    folders = [make(tmp_path, kind) for kind in ("one layer", "by pattern")]
    assert combine(*folders, "--method", "concat", "--out", "out")[0] == 0
    assert changes(Path("out")).keys() == {*changes(folders[0]), *changes(folders[1])}


def test_concat_is_exact(combine, tmp_path):
    """All ranks side by side are the weighted mean itself, and the table says so."""
    folders = [make(tmp_path, kind) for kind in ("small", "large", "few", "uneven", "stable")]
    weights = [3, 1, -1, 0.5, 2]
    code, out, _ = combine(
        *folders, "--weights", ",".join(map(str, weights)), "--method", "concat", "--out", "out"
    )
    mean = mean_of(folders, weights)
    assert code == 0
    assert json.loads(Path("out", CONFIG).read_text(encoding="utf-8"))["r"] == 2 + 8 + 4 + 5 + 3
    assert distance(changes(Path("out")), mean) < 1e-6 * norm(mean)
    assert "exact up to rounding" in out


def test_average_is_the_mean_of_the_factors(combine, tmp_path):
    """A and B apart; what that costs is printed, and is what a dense computation finds."""
    folders = [make(tmp_path, kind) for kind in ("small", "twin")]
    code, out, _ = combine(*folders, "--weights", "3,1", "--method", "average", "--out", "out")
    first, second, result = (load_file(Path(path, WEIGHTS)) for path in (*folders, "out"))
    assert code == 0
    assert result.keys() == first.keys()
    for key, value in result.items():
        torch.testing.assert_close(value, 0.75 * first[key] + 0.25 * second[key])
    mean = mean_of(folders, [3, 1])
    error = distance(changes(Path("out")), mean) / norm(mean)
    assert error > 0.1
    assert f"{100 * error:.3g} %" in out
    assert "--method product" in out


def test_half_precision_is_read_as_it_is(combine, tmp_path):
    """Factors in bfloat16 are combined in float64 like others."""
    folder = make(tmp_path, "small", narrow=True)
    assert {value.dtype for value in load_file(folder / WEIGHTS).values()} == {torch.bfloat16}
    assert combine(folder, folder, "--out", "out")[0] == 0
    assert distance(changes(Path("out")), changes(folder)) < 1e-6 * norm(changes(folder))


def test_the_table_names_what_went_in_and_what_came_out(combine, tmp_path):
    """A line for each adapter and the result; the error is that of the dense optimum."""
    folders = [make(tmp_path, kind) for kind in ("small", "large")]
    _, out, _ = combine(*folders, "--weights", "3,1", "--rank", 2, "--out", "out")
    lines = [line.split() for line in out.splitlines()]
    large = f"{norm(changes(folders[1])):.4g}"
    assert lines[0] == ["adapter", "rank", "alpha", "modules", "weight", "‖ΔW‖"]
    assert lines[1] == [str(folders[0]), "2", "4", "8", "0.75", f"{norm(changes(folders[0])):.4g}"]
    assert lines[2] == [str(folders[1]), "8", "8", "8", "0.25", large]
    assert lines[3] == ["out", "2", "4", "8", f"{norm(changes(Path('out'))):.4g}"]
    mean = mean_of(folders, [3, 1])
    error = distance(best_of(mean, 2), mean) / norm(mean)
    assert f"by {100 * error:.3g} % of that mean's norm" in out
    assert "With --rank 10 it would be exact" in out
    combine(*folders, "--weights", "3,1", "--rank", 10, "--out", "wide")
    assert distance(changes(Path("wide")), mean) < 1e-6 * norm(mean)


def test_the_base_model_may_be_named(combine, tmp_path):
    """Paths differ between machines, and PEFT may leave the name out."""
    folders = [make(tmp_path, kind) for kind in ("small", "large", "few")]
    for folder, name in zip(folders, ["/home/me/tiny", "/srv/tiny", None], strict=True):
        alter(folder, base_model_name_or_path=name, revision=name and "abc")
    assert combine(*folders, "--base-model", "org/other", "--out", "out")[0] == 0
    config = json.loads(Path("out", CONFIG).read_text(encoding="utf-8"))
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/other", None)


# What is refused


def refuses(combine, *arguments: object, says: Sequence[str]) -> None:
    before = sorted(Path.cwd().rglob("*"))
    code, out, err = combine(*arguments)
    assert (code, out) == (2, "")
    for text in says:
        assert text in err
    assert "Traceback" not in err
    assert sorted(Path.cwd().rglob("*")) == before


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ("1,1,1", "one for each of the 2 adapters was expected, but there are 3"),
        ("1", "one for each of the 2 adapters was expected, but there are 1"),
        ("1;1", "numbers with commas between them were expected, but it is '1;1'"),
        ("", "numbers with commas"),
        ("1,-1", "Finite weights with a positive sum were expected, but they are 1, -1"),
        ("-2,1", "Finite weights with a positive sum were expected, but they are -2, 1"),
        ("0,0", "Finite weights with a positive sum"),
        ("1,nan", "Finite weights with a positive sum"),
        ("1,inf", "Finite weights with a positive sum"),
        ("1e308,1e308", "Finite weights with a positive sum"),
    ],
)
def test_weights_that_make_no_mean_are_refused(combine, tmp_path, weights, says):
    """One finite number for each adapter, with a positive sum."""
    folders = [make(tmp_path, kind) for kind in ("small", "large")]
    refuses(combine, *folders, "--weights", weights, "--out", "out", says=[says])


def test_a_result_that_is_there_is_refused_first(combine):
    """Before anything is read, and whatever is there stays."""
    Path("out").mkdir()
    Path("out", "mine").write_text("")
    refuses(combine, "gone", "--out", "out", says=["out: it is already there"])


def test_different_base_models_are_refused(combine, tmp_path):
    """The message names folders, bases and the option that helps."""
    folders = [make(tmp_path, kind) for kind in ("small", "large")]
    alter(folders[1], base_model_name_or_path="/srv/tiny")
    names = [*map(str, folders), f"'{BASE}'", "'/srv/tiny'", "--base-model"]
    refuses(combine, *folders, "--out", "out", says=names)
    alter(folders[1], base_model_name_or_path=BASE, revision="v2")
    refuses(combine, *folders, "--out", "out", says=[*map(str, folders), "'v2'", "--base-model"])


def test_modules_of_other_shapes_are_refused(combine, tmp_path):
    """Whatever the base models are called, they are not one."""
    folders = [make(tmp_path, kind) for kind in ("small", "twin")]
    tensors = load_file(folders[1] / WEIGHTS)
    key = next(key for key in tensors if "q_proj.lora_A" in key)
    save_file(tensors | {key: torch.zeros(2, 25)}, folders[1] / WEIGHTS)
    names = [*map(str, folders), "layers.0.self_attn.q_proj", "(2, 24)", "(2, 25)"]
    refuses(combine, *folders, "--out", "out", says=names)


@pytest.mark.parametrize(
    ("kinds", "says"),
    [
        (("small", "large"), ["has rank 2 and alpha 4", "rank 8 and alpha 8"]),
        (("small", "one layer"), ["adapt different modules"]),
    ],
)
def test_average_of_unlike_adapters_is_refused(combine, tmp_path, kinds, says):
    """Factors of other ranks, alphas or modules have no mean; the message says what to do."""
    folders = [make(tmp_path, kind) for kind in kinds]
    says = [*says, *map(str, folders), "Use product"]
    refuses(combine, *folders, "--method", "average", "--out", "out", says=says)


@pytest.mark.parametrize("method", ["average", "concat"])
def test_only_product_takes_a_rank(combine, tmp_path, method):
    """The rank of the others follows from the adapters."""
    folder = make(tmp_path, "small")
    refuses(
        combine, folder, "--method", method, "--rank", 2, "--out", "out",
        says=["Only product takes a rank", method],
    )  # fmt: skip


def test_a_rank_that_no_weight_can_have_is_refused(combine, tmp_path):
    """Instead of filling the memory with zeros."""
    folder = make(tmp_path, "small")
    says = ["A rank from 1 to 24 was expected, but it is 1000000000"]
    refuses(combine, folder, "--rank", 10**9, "--out", "out", says=says)


def test_a_bad_adapter_is_named(combine, tmp_path):
    """Whichever it is; nothing is written."""
    good, bad = make(tmp_path, "small"), make(tmp_path, "large")
    alter(bad, use_dora=True)
    refuses(combine, good, bad, "--out", "out", says=[str(bad), "use_dora"])
    refuses(combine, good, tmp_path / "gone", "--out", "out", says=[str(tmp_path / "gone")])


def test_a_full_disk_leaves_nothing(combine, tmp_path, small_disk):
    """One message, and no half-written result."""
    folder = make(tmp_path, "small")
    with small_disk(4096):
        refuses(combine, folder, "--out", "out", says=["out: cannot be written"])
