"""A merged model is its base with the adapter: the same logits, and nothing else changed."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from fedlora.adapter import AdapterSpec, AdapterState, TensorSpec
from fedlora.errors import FedloraError, ReleaseError
from fedlora.peft_folder import write_peft_folder
from fedlora.release import weights
from fedlora.release.folder import Release, sign_folder, verify
from fedlora.release.manifest import Base, Evaluation, Loss
from fedlora.release.merge import merge
from fedlora.release.reference import unverified
from fedlora.signing import Signer, new_key
from fedlora.training.base_model import digest, resolve
from simulations.published import manifest_of
from tests.tiny_models import ARCHITECTURES, tiny_base

IDS = torch.arange(5, 45).view(2, 20)
EMBEDDED = resolve("embedded", None)
ON_EMBEDDED = {
    "model.layers.1.self_attn.q_proj": (192, 192),
    "model.layers.4.mlp.down_proj": (512, 192),
}


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    """A publisher's key."""
    new_key(tmp_path / "publisher.key")
    return Signer.load(tmp_path / "publisher.key")


Released = Callable[..., Release]


@pytest.fixture
def released(tmp_path: Path, signer: Signer) -> Released:
    """Return a maker of verified releases of an adapter on a base."""

    def make(state: AdapterState, base: Path) -> Release:
        folder = tmp_path / "release"
        write_peft_folder(state, folder)
        loss = Loss(base=3.0, adapter=2.0)
        manifest = manifest_of(
            folder,
            base=Base(name="base", digest=digest(base)),
            evaluation=Evaluation(held_out=loss),
        )
        sign_folder(folder, manifest, signer=signer)
        return verify(folder, key=signer.public)

    return make


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AdapterState]:
    """A random Llama in float32, and an adapter of random A and B on all of its linear modules."""
    folder = tmp_path_factory.mktemp("tiny") / "base"
    return folder, tiny_base(folder).adapter()


def adapter_on(modules: Mapping[str, tuple[int, int]], *, alpha: float = 1.0) -> AdapterState:
    """Return an adapter of random A and B on modules of these inputs and outputs."""
    tensors: list[TensorSpec] = []
    for module, (inputs, outputs) in modules.items():
        tensors += (
            TensorSpec(module=module, factor="A", shape=(4, inputs)),
            TensorSpec(module=module, factor="B", shape=(outputs, 4)),
        )
    spec = AdapterSpec(
        base_model="base",
        base_model_revision=None,
        base_digest="",
        rank=4,
        alpha=alpha,
        target_modules=tuple(modules),
        tensors=tuple(tensors),
    )
    generator = torch.Generator().manual_seed(0)
    return AdapterState(spec=spec, values=torch.randn(spec.size, generator=generator))


def logits(folder: Path, adapter: Path | None = None, *, by_peft: bool = False) -> Tensor:
    """Return what a model's float32 weights compute, in float64, with an adapter if one is named.

    In float32 the computation rounds more than the merged weights were.
    """
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter:
        network = PeftModel.from_pretrained(network, adapter)
    if by_peft:
        network = network.merge_and_unload(safe_merge=True)
    with torch.no_grad():
        return network.double().eval()(input_ids=IDS).logits


def copy_of(base: Path, folder: Path) -> Path:
    """Return a copy that a test may change."""
    shutil.copytree(base, folder)
    return folder


def sharded(base: Path, folder: Path) -> Path:
    """Return the same model in several files, one of its tensors in each."""
    tensors = load_file(copy_of(base, folder) / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = list(tensors)
    parts = {f"model-{k}-of-3.safetensors": names[k::3] for k in range(3)}
    for file, held in parts.items():
        save_file({n: tensors[n] for n in held}, folder / file, metadata={"format": "pt"})
    index = {
        "metadata": {},
        "weight_map": {name: file for file, held in parts.items() for name in held},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def refused(release: Release, base: Path, out: Path, match: str, **options) -> None:
    """A model that cannot be merged leaves nothing behind."""
    before = set(out.parent.iterdir())
    with pytest.raises(FedloraError, match=match):
        merge(release, base, out, **options)
    assert set(out.parent.iterdir()) == before


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_computes_what_base_and_adapter_compute(architecture, released, tmp_path):
    """Logits of the merged model are those of the unmerged one, and of PEFT's own merge."""
    base = tmp_path / "base"
    state = tiny_base(base, architecture).adapter()
    release = released(state, base)
    merge(release, base, tmp_path / "merged")
    merged = logits(tmp_path / "merged")
    assert (merged - logits(base)).abs().max() > 0.1
    torch.testing.assert_close(merged, logits(base, release.folder), rtol=0, atol=1e-5)
    by_peft = logits(base, release.folder, by_peft=True)
    torch.testing.assert_close(merged, by_peft, rtol=0, atol=1e-5)


def test_each_weight_is_rounded_once_and_no_other_changes(released, tmp_path):
    """In a bfloat16 base an adapted weight is the float64 sum, rounded; others keep their bits."""
    state = adapter_on(ON_EMBEDDED)
    merge(released(state, EMBEDDED), EMBEDDED, tmp_path / "merged")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    adapted = {f"{module}.weight": (down, up) for module, down, up in state.pairs()}
    stored = load_file(EMBEDDED / "model.safetensors")
    assert merged.keys() == stored.keys() > adapted.keys()
    for name, weight in stored.items():
        expected = weight
        if name in adapted:
            down, up = adapted[name]
            dense = state.spec.scaling * (up.double() @ down.double())
            expected = (weight.double() + dense).to(torch.bfloat16)
            assert not torch.equal(expected, weight)
        assert torch.equal(merged[name], expected)


def test_how_many_rows_are_read_at_once_changes_nothing(tiny, released, tmp_path, monkeypatch):
    """The bytes are the same with a row at a time, with some, and with all."""
    base, state = tiny
    release = released(state, base)
    merge(release, base, tmp_path / "whole")
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    for values in (1, 200):
        monkeypatch.setattr(weights, "_BLOCK", values)
        merge(release, base, tmp_path / str(values))
        blocks = load_file(tmp_path / str(values) / "model.safetensors")
        for name, tensor in whole.items():
            torch.testing.assert_close(blocks[name], tensor, rtol=1e-7, atol=0)


def test_a_base_in_several_files_stays_in_them(tiny, released, tmp_path):
    """Each file has its tensors, the new index names them, and transformers loads them."""
    base = sharded(tiny[0], tmp_path / "base")
    out = tmp_path / "merged"
    release = released(tiny[1], base)
    merge(release, base, out)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    before = json.loads((base / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == before["weight_map"]
    files = sorted(set(index["weight_map"].values()))
    assert index["metadata"]["total_size"] == sum(
        tensor.nbytes for file in files for tensor in load_file(out / file).values()
    )
    torch.testing.assert_close(logits(out), logits(base, release.folder), rtol=0, atol=1e-5)


def test_another_type_is_that_of_all_weights_and_of_the_configuration(released, tmp_path):
    """With float32, nothing is rounded to the base's bfloat16, and transformers loads float32."""
    release = released(adapter_on(ON_EMBEDDED, alpha=0.1), EMBEDDED)
    out = tmp_path / "merged"
    merge(release, EMBEDDED, out, dtype=torch.float32)
    assert {t.dtype for t in load_file(out / "model.safetensors").values()} == {torch.float32}
    assert AutoModelForCausalLM.from_pretrained(out).dtype == torch.float32
    torch.testing.assert_close(logits(out), logits(EMBEDDED, release.folder), rtol=0, atol=1e-5)


def test_the_folder_is_a_whole_model_and_no_other_copy_of_the_base(tiny, released, tmp_path):
    """Configuration, tokenizer, template and licence are there; unmerged weights are not."""
    base = copy_of(tiny[0], tmp_path / "base")
    (base / "LICENSE").write_text("terms", encoding="utf-8")
    (base / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    (base / "README.md").write_text("the base's", encoding="utf-8")
    (base / "pytorch_model.bin").write_bytes(b"pickle")
    save_file({"unmerged": torch.zeros(2)}, base / "consolidated.safetensors")
    out = tmp_path / "merged"
    merge(released(tiny[1], base), base, out)
    copied = {"LICENSE", "chat_template.jinja", "tokenizer.json", "tokenizer_config.json"}
    for name in copied | {"config.json"}:
        assert (out / name).read_bytes() == (base / name).read_bytes()
    found = {path.name for path in out.iterdir()}
    made = {"model.safetensors", "README.md", "provenance.json", "manifest.json"}
    assert found == copied | made | {"config.json", "generation_config.json"}
    assert "merged into it" in (out / "README.md").read_text(encoding="utf-8")
    with safe_open(out / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_the_manifest_says_what_it_was_made_of(tiny, released, signer, tmp_path):
    """It is of kind merged, follows the adapter's release, and claims no loss of its own."""
    base, state = tiny
    release = released(state, base)
    manifest = merge(release, base, tmp_path / "draft")
    assert (manifest.kind, manifest.name) == ("merged", "demo-merged")
    assert manifest.origin.parent == release.id
    assert manifest.privacy == release.manifest.privacy
    assert manifest.evaluation == Evaluation()
    told = json.loads((tmp_path / "draft" / "provenance.json").read_text())
    assert {part["digest"]["sha256"] for part in told["subject"]} == {
        file.sha256
        for name, file in manifest.files.items()
        if name not in {"README.md", "provenance.json"}
    }
    materials = told["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert [each["digest"]["sha256"] for each in materials] == [release.id, digest(base)]
    assert unverified(tmp_path / "draft") == manifest
    with pytest.raises(ReleaseError, match=r"manifest.sig"):
        verify(tmp_path / "draft", key=signer.public)
    signed = merge(release, base, tmp_path / "signed", signer=signer)
    assert verify(tmp_path / "signed", key=signer.public).manifest == signed


def test_a_merged_model_is_not_merged_again(tiny, released, signer, tmp_path):
    """It is no adapter."""
    base, state = tiny
    merge(released(state, base), base, tmp_path / "merged", signer=signer)
    merged = verify(tmp_path / "merged", key=signer.public)
    refused(merged, base, tmp_path / "again", "an adapter was expected; this is merged")


def test_only_the_base_of_the_manifest_will_do(tiny, released, tmp_path):
    """One other bit of the base, and it is refused with both digests."""
    base, state = tiny
    release = released(state, base)
    other = copy_of(base, tmp_path / "other")
    text = (other / "tokenizer_config.json").read_text(encoding="utf-8")
    (other / "tokenizer_config.json").write_text(text + " ", encoding="utf-8")
    digests = f"{digest(other)[:12]}.*{digest(base)[:12]}"
    refused(release, other, tmp_path / "merged", digests)


def test_a_quantised_base_is_refused(tiny, released, tmp_path):
    """Whether its configuration says so or the types of its weights do."""
    base = copy_of(tiny[0], tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    quantized = config | {"quantization_config": {"quant_method": "bitsandbytes"}}
    (base / "config.json").write_text(json.dumps(quantized), encoding="utf-8")
    refused(released(tiny[1], base), base, tmp_path / "merged", "this base is quantised")
    (base / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tensors = load_file(base / "model.safetensors")
    for type_, reason in (
        (torch.float8_e4m3fn, "of type F8_E4M3. This base is quantised"),
        (torch.int8, "but the adapter changes floating-point weights"),
    ):
        name = "model.layers.0.mlp.up_proj.weight"
        save_file(tensors | {name: tensors[name].to(type_)}, base / "model.safetensors")
        shutil.rmtree(tmp_path / "release")
        refused(released(tiny[1], base), base, tmp_path / "merged", reason)


def test_weights_under_another_name_are_refused(tiny, released, tmp_path):
    """Transformers may load such a file; which weight is whose is not guessed."""
    base = copy_of(tiny[0], tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    renamed = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    save_file(renamed, base / "model.safetensors")
    reason = r"there is no model\.layers\.0\.self_attn\.q_proj\.weight in its weights"
    refused(released(tiny[1], base), base, tmp_path / "merged", reason)


def test_a_transposed_weight_is_refused(released, tmp_path):
    """GPT-2 keeps its weights transposed, which a square one does not show by its shape."""
    base = tmp_path / "base"
    GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=2048)).save_pretrained(
        base
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EMBEDDED / name, base)
    release = released(adapter_on({"transformer.h.0.attn.c_proj": (8, 8)}), base)
    reason = "transformer.h.0.attn.c_proj is no linear module with a weight of its own"
    refused(release, base, tmp_path / "merged", reason)


def test_a_weight_that_two_modules_share_is_refused(released, tmp_path):
    """The embedded base's output head is its embedding: one cannot change without the other."""
    release = released(adapter_on({"lm_head": (192, 2048)}), EMBEDDED)
    refused(release, EMBEDDED, tmp_path / "merged", "share it with another module")


def test_an_adapter_of_another_shape_is_refused(released, tmp_path):
    """The error names the weight and both shapes."""
    release = released(adapter_on({"model.layers.0.self_attn.q_proj": (192, 100)}), EMBEDDED)
    refused(release, EMBEDDED, tmp_path / "merged", r"q_proj.weight is \(192, 192\).*\(100, 192\)")


def test_a_weight_that_leaves_its_types_range_is_refused(released, tmp_path):
    """An infinite weight would be found when the model is used, and not before."""
    release = released(adapter_on(ON_EMBEDDED, alpha=1e6), EMBEDDED)
    reason = "leaves the range of torch.float16"
    refused(release, EMBEDDED, tmp_path / "merged", reason, dtype=torch.float16)


def test_a_weight_that_is_not_adapted_keeps_its_types_range_too(tiny, released, tmp_path):
    """It is rounded as well, where another type is asked for."""
    base = copy_of(tiny[0], tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"][0] = 1e5
    save_file(tensors, base / "model.safetensors")
    refused(
        released(tiny[1], base),
        base,
        tmp_path / "merged",
        "model.norm.weight: it leaves the range of torch.float16",
        dtype=torch.float16,
    )


def test_a_base_s_file_that_no_release_can_hold_is_refused(tiny, released, tmp_path, monkeypatch):
    """Before the weights are written, which takes long."""
    base = copy_of(tiny[0], tmp_path / "base")
    (base / "my notes.txt").write_text("x", encoding="utf-8")
    monkeypatch.setattr("fedlora.release.weights.Weights.write", None)
    refused(released(tiny[1], base), base, tmp_path / "merged", "my notes.txt: a release's files")


def test_nothing_is_overwritten_and_nothing_half_written_stays(
    tiny, released, tmp_path, small_disk, monkeypatch
):
    """A folder that is there stays; without room nothing is begun; a full disk leaves nothing."""
    base, state = tiny
    release = released(state, base)
    (tmp_path / "there").mkdir()
    refused(release, base, tmp_path / "there", "it is already there")
    with small_disk(100_000):
        refused(release, base, tmp_path / "merged", "cannot be written")
    free = shutil.disk_usage(tmp_path)._replace(free=100_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    refused(release, base, tmp_path / "merged", r"needs .* bytes, but 100,000 are free")


def test_a_classifier_is_not_merged(released, tmp_path):
    """The base has no place for its head; the reason says what to do instead."""
    state = adapter_on(ON_EMBEDDED)
    head = TensorSpec(module="score.weight", factor="head", shape=(2, 192))
    spec = replace(state.spec, tensors=(*state.spec.tensors, head))
    with_head = AdapterState(spec=spec, values=torch.cat([state.values, torch.zeros(2 * 192)]))
    with pytest.raises(ReleaseError, match=r"has a head, score\.weight.*merge_and_unload"):
        merge(released(with_head, EMBEDDED), EMBEDDED, tmp_path / "out")
