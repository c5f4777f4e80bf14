"""The base model, described and resident."""

import json
import shutil
from hashlib import sha256
from inspect import signature
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from fedlora.adapter import AdapterState
from fedlora.errors import BaseModelError
from fedlora.training.base_model import BaseModel, Panel, describe, digest, resolve
from fedlora.training.base_model.files import part_digests
from fedlora.training.base_model.network import load_tokenizer, quietly
from fedlora.training.gradient import plain_gradient
from fedlora.training.local import train_local
from fedlora.training.objectives import sft_loss
from tests.tiny_models import random_tokens, tiny_base

EMBEDDED = resolve("embedded", None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a copy of the embedded model that a test may break."""
    return Path(shutil.copytree(EMBEDDED, tmp_path / "model"))


def gradients(base: BaseModel, batch: object) -> torch.Tensor:
    base.model.train()
    sft_loss(base, batch).sum().backward()
    flat = torch.cat([parameter.grad.flatten() for parameter in base.parameters])
    base.model.zero_grad()
    return flat


@torch.no_grad()
def test_the_initial_adapter_changes_nothing(base, batch):
    """Logits with it equal those of the model as transformers loads it."""
    base.load_adapter(AdapterState.initial(base.spec, seed=0))
    base.model.eval()
    plain = AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype=torch.float32)
    keep = torch.ones_like(batch.input_ids, dtype=torch.bool)
    expected = plain(input_ids=batch.input_ids).logits.flatten(0, 1)
    torch.testing.assert_close(base.logits(batch.input_ids, keep=keep), expected)


@torch.no_grad()
def test_adapter_off_is_the_base_alone(base, adapter, batch):
    """Inside the block the adapter has no effect; after it, it has it again and can be trained."""
    base.model.eval()
    keep = torch.ones_like(batch.input_ids, dtype=torch.bool)
    base.load_adapter(AdapterState.initial(base.spec, seed=0))
    plain = base.logits(batch.input_ids, keep=keep)
    base.load_adapter(adapter)
    with base.adapter_off():
        assert torch.equal(base.logits(batch.input_ids, keep=keep), plain)
    assert not torch.allclose(base.logits(batch.input_ids, keep=keep), plain)
    assert all(parameter.requires_grad for parameter in base.parameters)


def test_an_adapter_goes_in_and_comes_out_bit_for_bit(base, adapter):
    """What is read back is a copy: loading another adapter does not change it."""
    base.load_adapter(adapter)
    out = base.adapter()
    base.load_adapter(AdapterState.initial(base.spec, seed=1))
    assert torch.equal(out.values, adapter.values)


def test_only_the_factors_can_be_trained_and_they_are_float32(recipe_of):
    """Also over a base in bfloat16, and however the base is held."""
    for kind in ("lora", "qlora"):
        base = BaseModel.load(recipe_of(adapter=kind, bf16=True))
        trainable = [p for p in base.model.parameters() if p.requires_grad]
        assert {id(p) for p in trainable} == {id(p) for p in base.parameters}
        assert {p.dtype for p in trainable} == {torch.float32}


# PEFT reads a property that transformers deprecates.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
def test_the_spec_is_what_peft_builds_and_saves(base, adapter):
    """Names, shapes, order and values agree with a PEFT model made from the released config."""
    spec = base.spec
    config = LoraConfig(r=spec.rank, target_modules=list(spec.target_modules))
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(EMBEDDED), config)
    theirs = get_peft_model_state_dict(model)
    ours = {f"base_model.model.{t.name}.weight": t.shape for t in spec.tensors}
    assert list(ours.items()) == [(name, tuple(v.shape)) for name, v in theirs.items()]
    base.load_adapter(adapter)
    held = get_peft_model_state_dict(base.model)
    for tensor, values in adapter.factors():
        assert torch.equal(held[f"base_model.model.{tensor.name}.weight"], values)


def test_describing_gives_the_spec_that_loading_gives(base, base_nf4, recipe_of):
    """Without weights, and the same for lora and qlora."""
    facts = describe(recipe_of(adapter="qlora"))
    assert facts.spec == base.spec == base_nf4.spec
    network = AutoModelForCausalLM.from_pretrained(EMBEDDED)
    assert facts.parameters == sum(p.numel() for p in network.parameters())
    assert facts.architecture == "LlamaForCausalLM"
    assert (facts.dtype, facts.device) == ("float32", "cpu")


def test_named_modules_are_adapted_and_no_others(recipe_of):
    """Names may be last parts or ends of paths; ambiguous ones are kept as whole paths."""
    by_leaf = describe(recipe_of(lora_target_modules=["v_proj", "q_proj"])).spec
    assert by_leaf.target_modules == ("q_proj", "v_proj")
    assert [t.module for t in by_leaf.tensors[:4:2]] == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.0.self_attn.v_proj",
    ]
    recipe = recipe_of(lora_target_modules=["layers.1.mlp.up_proj"])
    base = BaseModel.load(recipe)
    assert base.spec.target_modules == ("model.layers.1.mlp.up_proj",)
    assert [t.factor for t in base.spec.tensors] == ["A", "B"]
    again = recipe_of(lora_target_modules=base.spec.target_modules)
    assert describe(again).spec == base.spec


def test_a_module_that_is_not_there_is_refused_with_those_that_are(recipe_of):
    """The output head is not among them."""
    with pytest.raises(BaseModelError, match=r"q_prj, lm_head fits no linear.*down_proj, gate_p"):
        describe(recipe_of(lora_target_modules=["q_prj", "q_proj", "lm_head"]))


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("/no/such/folder", "neither a folder nor a hub id"),
        ("no-such-folder", "neither a folder nor a hub id"),
        ("no/such/folder/here", "neither a folder nor a hub id"),
    ],
)
def test_a_base_that_is_not_there_is_refused(recipe_of, reference, message):
    """The error names the key and the reference."""
    with pytest.raises(BaseModelError, match=f"base_model: {reference} is {message}"):
        describe(recipe_of(base_model=reference))


def test_a_hub_id_without_network_or_cache_is_refused(recipe_of, tmp_path, monkeypatch):
    """The error says what was tried and what to do."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        BaseModelError, match=r"hub's org/name at revision v1 cannot be downl.*netw"
    ):
        describe(recipe_of(base_model="org/name", base_model_revision="v1"))


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", "has no config.json"),
        ("model.safetensors", "has no weights in safetensors format"),
        ("tokenizer.json", "has no tokenizer"),
    ],
)
def test_an_incomplete_folder_is_refused(recipe_of, folder, missing, message):
    """Configuration, weights and tokenizer must be there."""
    (folder / missing).unlink()
    with pytest.raises(BaseModelError, match=message):
        describe(recipe_of(base_model=str(folder)))


def test_broken_files_are_refused(recipe_of, folder):
    """Each gives an error that names the folder: configuration, weights, tokenizer."""
    recipe = recipe_of(base_model=str(folder))
    for name in ("tokenizer.json", "model.safetensors", "config.json"):
        (folder / name).write_text("broken")
        with pytest.raises(BaseModelError, match=f"{folder}: cannot be loaded"):
            BaseModel.load(recipe)


def test_weights_that_lack_a_tensor_are_refused(recipe_of, folder):
    """They are not filled with random values."""
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BaseModelError, match=r"lack 1 tensors, the first being model.norm.weight"):
        BaseModel.load(recipe_of(base_model=str(folder)))


def test_the_digest_follows_what_decides_tokens_and_logits(folder):
    """A copy has the same digest; a changed weight, token or template another; a README none."""
    digests = [digest(EMBEDDED), digest(folder)]
    assert digests[0] == digests[1]
    (folder / "README.md").write_text("words")
    assert digest(folder) == digests[0]
    for name in ("model.safetensors", "tokenizer.json", "chat_template.jinja", "config.json"):
        (folder / name).write_bytes((folder / name).read_bytes() + b" ")
        digests.append(digest(folder))
    assert len(set(digests)) == 5


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model.safetensors", "weights_digest"),
        ("tokenizer.json", "tokenizer_digest"),
        ("chat_template.jinja", "chat_template_digest"),
        ("config.json", None),
    ],
)
def test_each_part_of_a_base_has_a_digest_of_its_own(folder, name, part):
    """A changed file changes the digest of its part alone."""
    before = part_digests(folder).model_dump()
    (folder / name).write_bytes((folder / name).read_bytes() + b" ")
    after = part_digests(folder).model_dump()
    assert {key for key in before if before[key] != after[key]} == ({part} if part else set())


def test_the_chat_template_is_the_one_that_counts(folder):
    """Its own file comes before the configuration's key; the same text has the same digest."""
    configuration = folder / "tokenizer_config.json"
    values = json.loads(configuration.read_text())
    own = folder / "chat_template.jinja"
    first, text = part_digests(folder).chat_template_digest, own.read_text()
    configuration.write_text(json.dumps(values | {"chat_template": "another"}))
    assert part_digests(folder).chat_template_digest == first
    own.unlink()
    assert part_digests(folder).chat_template_digest == sha256(b"another").hexdigest()
    configuration.write_text(json.dumps(values | {"chat_template": text}))
    assert part_digests(folder).chat_template_digest == first
    configuration.write_text(json.dumps(values))
    assert part_digests(folder).chat_template_digest is None


def test_checkpointing_gives_the_same_gradients(base, adapter, batch, recipe_of):
    """Layers that are computed again add nothing to and take nothing from the gradient."""
    checkpointing = BaseModel.load(recipe_of(gradient_checkpointing=True))
    base.load_adapter(adapter)
    checkpointing.load_adapter(adapter)
    torch.testing.assert_close(gradients(checkpointing, batch), gradients(base, batch))


@pytest.mark.parametrize("template", [True, False])
def test_the_answer_is_greedy_and_ends_at_the_end_token(recipe_of, folder, batch, template):
    """A model that learned one answer to one question gives it, with a chat template or not."""
    prompt = "<|user|>\nWhich number?<|end|>\n<|assistant|>\n" if template else "Which number?"
    if not template:
        (folder / "chat_template.jinja").unlink()
    recipe = recipe_of(base_model=str(folder), learning_rate=2e-2)
    base = BaseModel.load(recipe)
    question = base.tokenizer(prompt).input_ids
    answer = [*base.tokenizer("forty-two").input_ids, base.tokenizer.eos_token_id]
    lesson = type(batch)(
        torch.tensor([question + answer]), torch.tensor([[-100] * len(question) + answer])
    )
    start = AdapterState.initial(base.spec, seed=0)
    steps = {"first_step": 0, "total_steps": 12, "seed": "0"}
    keys = {"gradient": plain_gradient(recipe), "part": base.spec, "recipe": recipe}
    train_local(base, start, [[lesson]] * 12, **keys, **steps)
    plain, adapted = Panel.load(recipe, [base.adapter()]).answers(
        "Which number?", max_new_tokens=20
    )
    assert adapted == "forty-two" != plain


def test_a_regular_expression_chooses_modules_by_their_whole_paths(recipe_of):
    """As in PEFT; what is published has the modules' names, which every engine reads."""
    expression = r"model\.layers\.(0|2)\.self_attn\.[qv]_proj"
    spec = describe(recipe_of(lora_target_modules=expression)).spec
    expected = [f"model.layers.{n}.self_attn.{p}_proj" for n in (0, 2) for p in "qv"]
    assert [tensor.module for tensor in spec.tensors[::2]] == expected
    assert spec.target_modules == tuple(expected)
    everywhere = describe(recipe_of(lora_target_modules=r".*\.[qv]_proj")).spec
    assert everywhere.target_modules == ("q_proj", "v_proj")
    assert [t.name for t in BaseModel.load(recipe_of(lora_target_modules=expression)).spec.tensors]


def test_an_expression_that_fits_nothing_is_refused(recipe_of):
    """A name that is written without a list is one."""
    with pytest.raises(BaseModelError, match=r"q_proj fits no linear module .* regular expression"):
        describe(recipe_of(lora_target_modules="q_proj"))


@torch.no_grad()
def test_rank_stabilised_adapters_are_scaled_by_the_root_of_the_rank(recipe_of, batch):
    """As PEFT computes ``use_rslora``, over alpha; no part of the adapter scales otherwise."""
    recipe = recipe_of(lora_r=9, lora_alpha=6, peft_use_rslora=True)
    base = BaseModel.load(recipe)
    assert base.spec.scaling == recipe.scaling == 2
    assert base.spec.part(rank=4).scaling == base.spec.part(rank=16).scaling == 2
    network = AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype=torch.float32)
    names = list(base.spec.target_modules)
    config = LoraConfig(r=9, lora_alpha=6, use_rslora=True, target_modules=names)
    with quietly():
        theirs = get_peft_model(network, config).eval()
    generator = torch.Generator().manual_seed(0)
    values = 0.05 * torch.randn(base.spec.size, generator=generator)
    state = AdapterState(spec=base.spec, values=values)
    base.load_adapter(state)
    parameters = dict(theirs.named_parameters())
    for tensor, factor in state.factors():
        parameters[f"base_model.model.{tensor.name}.default.weight"].copy_(factor)
    base.model.eval()
    keep = torch.ones_like(batch.input_ids, dtype=torch.bool)
    expected = theirs(input_ids=batch.input_ids).logits.flatten(0, 1)
    torch.testing.assert_close(base.logits(batch.input_ids, keep=keep), expected)


def test_a_base_that_is_quantised_already_is_refused(recipe_of, folder):
    """A release could not be merged into it; it is quantised while it is loaded."""
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BaseModelError, match=r"quantised already.*adapter: qlora"):
        describe(recipe_of(base_model=str(folder)))


def test_code_that_comes_with_a_base_is_never_run(recipe_of, folder):
    """A model that transformers does not know by itself is refused."""
    (folder / "model.py").write_text("raise SystemExit('it ran')")
    names = {"AutoConfig": "model.Config", "AutoModelForCausalLM": "model.Model"}
    config = {"model_type": "unknown-kind", "auto_map": names}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BaseModelError, match="needs code of its own, which is never run here"):
        describe(recipe_of(base_model=str(folder)))


def test_a_tokenizer_that_is_not_fast_is_refused(tmp_path, folder):
    """It cannot tell an answer's tokens from those of its prompt."""
    for path in folder.glob("tokenizer*"):
        path.unlink()
    words = ["<pad>", "<unk>", "a", "b"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    kind = {"tokenizer_class": "CTRLTokenizer", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind))
    with pytest.raises(
        BaseModelError, match=r"CTRLTokenizer is no fast tokenizer.*tokenizer\.json"
    ):
        load_tokenizer(folder)


def test_rows_that_are_longer_than_the_base_has_places_for_are_refused(tmp_path):
    """Before any training, which would end at the first long row."""
    base = tiny_base(tmp_path, "gpt2")
    places = base.model.get_base_model().config.n_positions
    base.require_trainable(length=places)
    with pytest.raises(BaseModelError, match=f"does not take {places + 1} tokens"):
        base.require_trainable(length=places + 1)


def test_a_padding_token_that_has_no_embedding_is_not_taken(tmp_path):
    """Some tokenizers add one that the network does not know."""
    base = tiny_base(tmp_path, "llama")
    size = base.model.get_input_embeddings().weight.shape[0]
    base.tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    while base.tokenizer.pad_token_id < size:
        base.tokenizer.add_tokens([f"[{len(base.tokenizer)}]"])
        base.tokenizer.pad_token = f"[{len(base.tokenizer) - 1}]"
    assert base.pad_token_id < size


@torch.no_grad()
def test_logits_of_a_network_that_computes_them_all_are_picked(tmp_path):
    """That of xLSTM has no ``logits_to_keep``: what is kept is the same."""
    base = tiny_base(tmp_path, "xlstm")
    base.model.eval()
    ids = random_tokens(6, 4).input_ids
    keep = torch.tensor([[0, 1, 0, 0, 1, 1], [1, 0, 0, 1, 0, 0]], dtype=torch.bool)
    assert "logits_to_keep" not in signature(base.model.get_base_model().forward).parameters
    expected = base.model(input_ids=ids, use_cache=False).logits[keep]
    torch.testing.assert_close(base.logits(ids, keep=keep), expected)
