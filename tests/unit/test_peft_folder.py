"""Adapters in PEFT's format: what is written PEFT loads; what is read is plain LoRA or refused."""

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from fedlora.adapter import AdapterState
from fedlora.errors import AdapterError, StorageError
from fedlora.peft_folder import read_peft_folder, write_peft_folder
from fedlora.recipe import Recipe
from fedlora.training.base_model import describe, resolve
from fedlora.training.base_model.network import quietly
from tests.strategies import make_spec, make_state, specs, states

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
B = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"


@pytest.fixture
def network() -> PreTrainedModel:
    """The embedded base as transformers loads it; PEFT alters it in place."""
    with quietly():
        return AutoModelForCausalLM.from_pretrained(resolve("embedded", None), dtype=torch.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good adapter of rank 2, for tests to spoil."""
    write_peft_folder(make_state(), tmp_path / "adapter")
    return tmp_path / "adapter"


def configure(folder: Path, **keys: Any) -> None:
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    (folder / CONFIG).write_text(json.dumps(config | keys), encoding="utf-8")


def alter(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def values_in(folder: Path) -> torch.Tensor:
    return read_peft_folder(folder).arranged_as(make_spec()).values


def with_header(folder: Path, header: bytes, *, claim: int | None = None) -> None:
    length = struct.pack("<Q", len(header) if claim is None else claim)
    (folder / WEIGHTS).write_bytes(length + header + bytes(64))


def refuses(folder: Path, says: str) -> None:
    with pytest.raises(AdapterError, match=re.escape(says)) as caught:
        read_peft_folder(folder)
    assert len(str(caught.value)) < 500


# What is written


@settings(max_examples=30)
@given(data=st.data(), spec=specs())
def test_what_is_written_reads_back_bit_for_bit(tmp_path_factory, data, spec):
    """Names, shapes, scaling and every value's bits survive, in the order of the specification."""
    state = data.draw(states(spec))
    folder = tmp_path_factory.mktemp("peft") / "adapter"
    write_peft_folder(state, folder)
    again = read_peft_folder(folder, base_digest=spec.base_digest).arranged_as(spec)
    assert again.values.numpy().tobytes() == state.values.numpy().tobytes()
    assert again.spec is spec


def test_the_base_is_named(folder):
    """Engines look for it; PEFT by itself would write a local path."""
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == "embedded"
    spec = read_peft_folder(folder, base_digest="ff").spec
    assert (spec.base_model, spec.base_model_revision, spec.base_digest) == ("embedded", None, "ff")


def test_peft_loads_what_is_written(network, tmp_path):
    """On the embedded base, PEFT changes each adapted weight by exactly scaling · B·A."""
    recipe = Recipe.model_validate(
        {"datasets": [{"path": "x"}], "privacy": {"unit": "none"}, "lora_r": 4, "lora_alpha": 8}
    )
    spec = describe(recipe).spec
    generator = torch.Generator().manual_seed(0)
    state = AdapterState(spec=spec, values=0.05 * torch.randn(spec.size, generator=generator))
    write_peft_folder(state, tmp_path / "adapter")
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad(), quietly():
        plain = network(input_ids=ids).logits
        weights = {name: weight.clone() for name, weight in network.named_parameters()}
        model = PeftModel.from_pretrained(network, tmp_path / "adapter")
        adapted = model(input_ids=ids).logits
        with model.disable_adapter():
            assert torch.equal(plain, model(input_ids=ids).logits)
        base = model.unload()
        for (a, factor_a), (b, factor_b) in pairs(state):
            assert a.module == b.module
            change = spec.scaling * factor_b.double() @ factor_a.double()
            weight = base.get_parameter(f"{a.module}.weight")
            weight.copy_(weights[f"{a.module}.weight"].double() + change)
        expected = base(input_ids=ids).logits
    assert not torch.allclose(plain, expected, atol=0.1)
    torch.testing.assert_close(adapted, expected, atol=1e-4, rtol=1e-4)


def test_a_folder_is_replaced_as_a_whole(folder):
    """A release that is written again leaves nothing of the old one."""
    (folder / "stray").write_text("")
    write_peft_folder(make_state(seed=1), folder)
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG, WEIGHTS]
    assert torch.equal(make_state(seed=1).values, values_in(folder))


def test_a_full_disk_leaves_the_old_adapter(folder, small_disk):
    """A clear error, the old adapter as it was, and nothing half-written beside it."""
    spec = make_spec(rank=64, modules={"m": (64, 64)})
    with small_disk(4096), pytest.raises(StorageError, match="adapter: cannot be written"):
        write_peft_folder(make_state(spec), folder)
    assert torch.equal(make_state().values, values_in(folder))
    assert [path.name for path in folder.parent.iterdir()] == ["adapter"]


# What is read


def test_what_peft_writes_is_read(network, tmp_path):
    """With PEFT's own configuration file, defaults and all."""
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM"
    )
    with quietly():
        model = get_peft_model(network, config)
        model.save_pretrained(tmp_path)
    state = read_peft_folder(tmp_path)
    assert (state.spec.rank, state.spec.scaling) == (4, 2)
    assert sorted(state.spec.target_modules) == ["q_proj", "up_proj"]
    parameters = dict(model.named_parameters())
    for tensor, values in state.factors():
        assert torch.equal(
            parameters[f"base_model.model.{tensor.name}.default.weight"].detach(), values
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_values_are_widened(folder, dtype):
    """Adapters in half precision become float32 without change."""
    alter(folder, lambda t: t.update({key: value.to(dtype) for key, value in t.items()}))
    state = read_peft_folder(folder)
    assert state.values.dtype == torch.float32
    assert torch.equal(state.arranged_as(make_spec()).values, make_state().values.to(dtype).float())


def test_target_modules_stay_as_they_are(folder):
    """A list of names means the same for every model of the kind."""
    configure(folder, target_modules=["v_proj", "q_proj"])
    assert read_peft_folder(folder).spec.target_modules == ("v_proj", "q_proj")


@pytest.mark.parametrize(
    "keys",
    [
        {"target_modules": ".*_proj"},
        {"exclude_modules": ["v_proj"]},
        {"exclude_modules": "v_.*"},
        {"layers_to_transform": [0]},
        {"layers_to_transform": 0},
        {"layers_to_transform": [0], "layers_pattern": "layers"},
    ],
)
def test_modules_that_are_chosen_by_pattern_get_their_names(folder, keys):
    """PEFT takes a text for a pattern; what it chose is in the file."""
    configure(folder, **keys)
    spec = read_peft_folder(folder).spec
    assert set(spec.target_modules) == {tensor.module for tensor in spec.tensors}


def changes(state: AdapterState) -> dict[str, torch.Tensor]:
    return {m: state.spec.scaling * up.double() @ down.double() for m, down, up in state.pairs()}


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_rank_stabilised_scaling_is_read(tmp_path, rank):
    """It divides by the root of the rank; the factors stay, and alpha says it in plain LoRA."""
    spec = make_spec(rank=rank, alpha=3.0)
    write_peft_folder(make_state(spec), tmp_path / "adapter")
    configure(tmp_path / "adapter", use_rslora=True)
    state = read_peft_folder(tmp_path / "adapter")
    assert state.spec.scaling == pytest.approx(3 / rank**0.5, rel=1e-15)
    arranged = {tensor.name: values for tensor, values in state.factors()}
    for tensor, values in make_state(spec).factors():
        assert torch.equal(arranged[tensor.name], values)


@pytest.mark.parametrize(
    ("key", "alpha"),
    [
        ("q_proj", 6),
        ("self_attn.q_proj", 6),
        ("model.layers.0.self_attn.q_proj", 6),
        ("^model.layers.0.self_attn.q_proj", 6),
        ("^self_attn.q_proj", 4),
        ("proj", 4),
        ("model", 4),
    ],
)
def test_alpha_of_single_modules_is_read(folder, key, alpha):
    """The first key counts that is a module's path or its end; B carries the difference."""
    configure(folder, alpha_pattern={key: 6, "0.self_attn.q_proj": 4})
    state = read_peft_folder(folder)
    for module, change in changes(state).items():
        factor = alpha / 4 if module.endswith("q_proj") else 1
        torch.testing.assert_close(change, factor * changes(make_state())[module])
    assert (state.spec.rank, state.spec.alpha) == (2, 4)


def test_ranks_of_single_modules_are_read(folder):
    """All are padded to the largest with zeros; each is scaled by its own rank, as in PEFT."""
    wide = {A: torch.randn(5, 3), B: torch.randn(5, 5)}
    alter(folder, lambda t: t.update(wide))
    configure(folder, rank_pattern={"q_proj": 5})
    state, change = read_peft_folder(folder), changes(read_peft_folder(folder))
    q_proj, up_proj = (
        A.split(".", 2)[2].removesuffix(".lora_A.weight"),
        "model.layers.0.mlp.up_proj",
    )
    torch.testing.assert_close(change[q_proj], 4 / 5 * wide[B].double() @ wide[A].double())
    torch.testing.assert_close(change[up_proj], changes(make_state())[up_proj])
    assert (state.spec.rank, state.spec.scaling) == (5, 2)
    down, up = next((down, up) for module, down, up in state.pairs() if module == up_proj)
    assert not down[2:].any()
    assert not up[:, 2:].any()


def test_padding_has_a_limit(tmp_path):
    """A small file cannot fill the memory."""
    modules = {"high": (1, 1), **{f"wide{i}": (40, 40) for i in range(40)}}
    write_peft_folder(make_state(make_spec(rank=1, modules=modules)), tmp_path / "adapter")
    high = {
        f"base_model.model.high.lora_{f}.weight": torch.zeros(shape)
        for f, shape in (("A", (1000, 1)), ("B", (1, 1000)))
    }
    alter(tmp_path / "adapter", lambda t: t.update(high))
    configure(tmp_path / "adapter", rank_pattern={"high": 1000})
    refuses(tmp_path / "adapter", "ranks up to 1000 differ too much")


def test_patterns_and_configurations_have_a_limit(folder):
    """Thousands of patterns, or megabytes of them, are no adapter."""
    configure(folder, rank_pattern={f"m{number}": 2 for number in range(1001)})
    refuses(folder, "rank_pattern")
    configure(folder, rank_pattern={}, auto_mapping="x" * 2**20)
    refuses(folder, "an adapter's configuration was expected")


def test_the_base_may_be_named_by_the_reader(folder):
    """Then neither the folder's name for it nor its revision counts, nor need there be one."""
    configure(folder, base_model_name_or_path=None, revision="v1")
    spec = read_peft_folder(folder, base_model="org/base").spec
    assert (spec.base_model, spec.base_model_revision) == ("org/base", None)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; only plain LoRA is read"),
        ({"use_dora": True}, "use_dora is True; only plain LoRA is read"),
        ({"use_rslora": "yes"}, "use_rslora is 'yes'"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"lora_bias": True}, "lora_bias is True"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is ['lm_head']"),
        ({"rank_pattern": {"q_proj": 4}}, "q_proj.lora_A.weight has shape (2, 3), but the rank is"),
        ({"rank_pattern": {"q_proj": 2.0}}, "rank_pattern has 2.0 for 'q_proj'"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern has 0 for 'q_proj'"),
        ({"rank_pattern": {"(a+)+": 2}}, "rank_pattern has 2 for '(a+)+'; positive numbers"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern is ['q_proj']; names of modules"),
        ({"alpha_pattern": {"q_proj": -1}}, "alpha_pattern has -1 for 'q_proj'"),
        ({"alpha_pattern": {"q_proj": float("nan")}}, "alpha_pattern has nan for 'q_proj'"),
        ({"alpha_pattern": {"q_proj": 1e300}}, "alpha_pattern has 1e+300 for 'q_proj'"),
        ({"lora_alpha": 1.7e308}, "lora_alpha must be a positive number"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is True"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices is [1]"),
        ({"something_new": {"x": "y" * 1000}}, "something_new is {'x': 'yyy"),
        ({"r": 0}, "r must be a positive integer, but it is 0"),
        ({"r": True}, "r must be a positive integer, but it is True"),
        ({"r": 2.0}, "r must be a positive integer, but it is 2.0"),
        ({"r": None}, "r must be a positive integer"),
        ({"lora_alpha": 0}, "lora_alpha must be a positive number, but it is 0"),
        ({"lora_alpha": -1}, "lora_alpha must be a positive number"),
        ({"lora_alpha": float("nan")}, "lora_alpha must be a positive number, but it is nan"),
        ({"lora_alpha": float("inf")}, "lora_alpha must be a positive number, but it is inf"),
        ({"lora_alpha": True}, "lora_alpha must be a positive number, but it is True"),
        ({"lora_alpha": "16"}, "lora_alpha must be a positive number"),
        ({"lora_alpha": 10**400}, "lora_alpha must be a positive number"),
        ({"target_modules": None}, "target_modules must be a list of names"),
        ({"target_modules": []}, "target_modules must be a list of names"),
        ({"target_modules": [1]}, "target_modules must be a list of names"),
        ({"target_modules": {"q_proj": 1}}, "target_modules must be a list of names"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path must be the base model's"),
        ({"base_model_name_or_path": ""}, "base_model_name_or_path must be the base model's"),
        ({"revision": 3}, "revision"),
    ],
)
def test_a_configuration_that_is_not_plain_lora_is_refused(folder, keys, says):
    """PEFT would load it and mean something else by it; the message names the key."""
    configure(folder, **keys)
    refuses(folder, says)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"3", b"null", b"[" * 100_000, b"\xff\xfe{}"], ids=range(7)
)
def test_a_configuration_that_is_no_json_object_is_refused(folder, text):
    """Empty, broken, nested without end, or another thing."""
    (folder / CONFIG).write_bytes(text)
    refuses(folder, "an adapter's configuration was expected")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda t: t.update({"base_model.model.lm_head.weight": torch.zeros(2, 2)}),
            "'base_model.model.lm_head.weight' is no LoRA factor",
        ),
        (lambda t: t.update({"x" * 1000: torch.zeros(1)}), "is no LoRA factor"),
        (lambda t: t.update({A + "\n": torch.zeros(2, 3)}), "is no LoRA factor"),
        (
            lambda t: t.update({A.replace("model.layers", "a/../b"): torch.zeros(2, 3)}),
            "is no LoRA factor",
        ),
        (
            lambda t: t.update({A.replace("lora_A", "lora_magnitude_vector"): torch.zeros(2)}),
            "is no LoRA factor",
        ),
        (lambda t: t.pop(A), "q_proj has only one of its two factors"),
        (lambda t: t.pop(B), "q_proj has only one of its two factors"),
        (lambda t: t.update({A: torch.zeros(3, 3)}), "has shape (3, 3), but the rank is 2"),
        (lambda t: t.update({B: torch.zeros(5, 3)}), "has shape (5, 3), but the rank is 2"),
        (lambda t: t.update({A: torch.zeros(2, 3, 1)}), "is not a matrix"),
        (lambda t: t.update({A: torch.zeros(2)}), "is not a matrix"),
        (lambda t: t.update({A: torch.zeros(2, 3, dtype=torch.int8)}), "is not a matrix"),
        (lambda t: t.update({A: torch.zeros(2, 3, dtype=torch.float64)}), "is not a matrix"),
        (lambda t: t[A].fill_(torch.nan), "values that are not finite"),
        (lambda t: t[B][0, 0].fill_(torch.inf), "values that are not finite"),
        (lambda t: t.clear(), "0 tensors are not plausible"),
        (
            lambda t: t.update({f"e{i}": torch.zeros(0) for i in range(20_001)}),
            "20005 tensors are not plausible",
        ),
    ],
)
def test_a_file_with_anything_but_pairs_of_factors_is_refused(folder, change, says):
    """Base weights above all, which PEFT would write over the base; the message names the key."""
    alter(folder, change)
    refuses(folder, says)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda f: with_header(f, b"", claim=0), "a header of 0 bytes is not plausible"),
        (lambda f: with_header(f, b"{}", claim=2**63), "bytes is not plausible"),
        (lambda f: with_header(f, b" " * (8 * 2**20 + 1)), "8,388,609 bytes is not plausible"),
        (lambda f: with_header(f, b"{}", claim=10_000), "10,000 bytes is not plausible"),
        (lambda f: with_header(f, b"[" * 100_000), "not a safetensors file"),
        (lambda f: with_header(f, b'{"a":' * 50_000), "not a safetensors file"),
        (lambda f: with_header(f, b"\xff\xfe{}"), "not a safetensors file"),
        (lambda f: with_header(f, b"[1, 2, 3]"), "not a safetensors file"),
        (lambda f: with_header(f, b'{"a": 3}'), "not a safetensors file"),
        (
            lambda f: with_header(
                f, b'{"a": {"dtype": "F32", "shape": [9, 9], "data_offsets": [0, 64]}}'
            ),
            "not a safetensors file",
        ),
        (
            lambda f: with_header(
                f, b'{"a": {"dtype": "F32", "shape": [4, 4], "data_offsets": [64, 128]}}'
            ),
            "not a safetensors file",
        ),
        (lambda f: (f / WEIGHTS).write_bytes(b""), "a header of 0 bytes is not plausible"),
        (lambda f: (f / WEIGHTS).write_bytes(b"PK\x03\x04"), "bytes is not plausible"),
        (
            lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-1]),
            "not a safetensors file",
        ),
    ],
)
def test_a_file_with_a_false_header_is_refused(folder, spoil, says):
    """Lengths and offsets are checked before anything is allocated for them."""
    spoil(folder)
    refuses(folder, says)


def test_a_pickle_is_never_read(folder):
    """PEFT would fall back to it; here its code does not run."""
    (folder / WEIGHTS).unlink()
    torch.save({A: torch.zeros(2, 3)}, folder / "adapter_model.bin")
    refuses(folder, f"there is no {WEIGHTS}. Pickled adapters are not read")


@pytest.mark.parametrize("kind", ["missing", "file", "empty folder"])
def test_what_is_no_adapter_folder_is_refused(tmp_path, kind):
    """The message names the file that was expected."""
    path = tmp_path / "adapter"
    if kind == "file":
        path.write_text("")
    elif kind == "empty folder":
        path.mkdir()
    refuses(path, f"{path / CONFIG}: an adapter's configuration was expected")


def pairs(state: AdapterState) -> list:
    """Return A and B of each module, each with its specification."""
    factors = list(state.factors())
    return list(zip(factors[::2], factors[1::2], strict=True))
