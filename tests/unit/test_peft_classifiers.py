"""Adapters with a head on disk: as PEFT writes and loads them."""

import json
import re

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from fedlora.adapter import AdapterState
from fedlora.errors import AdapterError
from fedlora.peft_config import CONFIG
from fedlora.peft_folder import WEIGHTS, read_peft_folder, write_peft_folder
from fedlora.training.base_model import BaseModel
from fedlora.training.base_model.network import quietly
from tests.classifiers import ARCHITECTURES, LABELS, classifier_recipe, write_base
from tests.strategies import HEADS, make_spec, make_state

SAVED = {
    "bert": ["bert.pooler.dense", "classifier"],
    "roberta": ["classifier"],
    "distilbert": ["pre_classifier", "classifier"],
    "modernbert": ["classifier"],
    "llama": ["score"],
}
IDS = torch.tensor([[2, 5, 6, 7, 3]])


@pytest.fixture(params=ARCHITECTURES)
def architecture(request):
    """Return each architecture's name."""
    return request.param


def network(folder, *, seed: int):
    """Return the classifier as anybody loads it: its head is drawn."""
    with torch.random.fork_rng(), quietly():
        torch.manual_seed(seed)
        return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(LABELS))


def loaded(folder, **keys) -> tuple[BaseModel, AdapterState]:
    """Return our classifier with an adapter of random values on it."""
    base = BaseModel.load(classifier_recipe(base_model=str(folder), **keys))
    generator = torch.Generator().manual_seed(1)
    values = 0.3 * torch.randn(base.spec.size, generator=generator)
    state = AdapterState(spec=base.spec, values=values)
    base.load_adapter(state)
    base.model.eval()
    return base, state


def ours(base: BaseModel) -> torch.Tensor:
    with torch.no_grad():
        return base.class_logits(IDS, torch.ones_like(IDS))


@pytest.mark.parametrize("targets", ["all-linear", "one"])
def test_peft_computes_what_was_trained(tmp_path, architecture, targets):
    """The head takes the place of one that was drawn, and no module but those named is changed."""
    folder = write_base(tmp_path / "base", architecture)
    one = {"bert": "query", "roberta": "key", "distilbert": "lin2", "modernbert": "Wo"}
    wanted = targets if targets == "all-linear" else [one.get(architecture, "down_proj")]
    base, state = loaded(folder, lora_target_modules=wanted)
    write_peft_folder(state, tmp_path / "adapter")

    config = json.loads((tmp_path / "adapter" / CONFIG).read_text(encoding="utf-8"))
    assert (config["task_type"], config["modules_to_save"]) == ("SEQ_CLS", SAVED[architecture])
    for seed in (0, 1):
        with torch.no_grad():
            model = PeftModel.from_pretrained(network(folder, seed=seed), tmp_path / "adapter")
            found = model.eval()(input_ids=IDS).logits
        torch.testing.assert_close(found, ours(base), rtol=1e-5, atol=1e-5)


def test_peft_writes_the_same_again(tmp_path, architecture):
    """Names and values of all tensors, when it saves what it loaded from us."""
    folder = write_base(tmp_path / "base", architecture)
    _, state = loaded(folder)
    write_peft_folder(state, tmp_path / "adapter")
    model = PeftModel.from_pretrained(network(folder, seed=0), tmp_path / "adapter")
    model.save_pretrained(tmp_path / "again")
    mine, theirs = (load_file(tmp_path / name / WEIGHTS) for name in ("adapter", "again"))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_what_peft_wrote_is_read(tmp_path, architecture):
    """An adapter that PEFT itself made for sequence classification computes the same here."""
    folder = write_base(tmp_path / "base", architecture)
    base, _ = loaded(folder)
    config = LoraConfig(
        task_type="SEQ_CLS",
        r=base.spec.rank,
        lora_alpha=16,
        target_modules=list(base.spec.target_modules),
        modules_to_save=[
            name for name in SAVED[architecture] if name not in {"classifier", "score"}
        ],
    )
    with torch.random.fork_rng():
        model = get_peft_model(network(folder, seed=3), config).eval()
        torch.manual_seed(4)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "theirs")

    state = read_peft_folder(tmp_path / "theirs", base_digest=base.spec.base_digest)
    base.load_adapter(state.arranged_as(base.spec))
    with torch.no_grad():
        expected = model(input_ids=IDS).logits
    torch.testing.assert_close(ours(base), expected, rtol=1e-5, atol=1e-5)


@pytest.fixture
def folder(tmp_path):
    """Return an adapter's folder, with a head."""
    write_peft_folder(make_state(make_spec(heads=HEADS)), tmp_path / "adapter")
    return tmp_path / "adapter"


def configure(folder, **keys) -> None:
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    (folder / CONFIG).write_text(json.dumps(config | keys), encoding="utf-8")


def alter(folder, change) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"task_type": "CAUSAL_LM"}, "only the head of a classifier (task_type SEQ_CLS) is read"),
        ({"task_type": None, "modules_to_save": ["lm_head"]}, "modules_to_save is ['lm_head']"),
        ({"modules_to_save": "classifier"}, "modules_to_save is 'classifier'"),
        ({"modules_to_save": [1]}, "modules_to_save is [1]"),
        ({"modules_to_save": [""]}, "modules_to_save is ['']"),
        ({"modules_to_save": ["x"] * 1001}, "modules_to_save is ['x', 'x'"),
    ],
)
def test_only_the_head_of_a_classifier_is_read_whole(folder, keys, says):
    """PEFT would put any weight in the base's place."""
    configure(folder, **keys)
    with pytest.raises(AdapterError, match=re.escape(says)) as caught:
        read_peft_folder(folder)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda t: t.update({"base_model.model.model.norm.weight": torch.zeros(2)}),
            "'base_model.model.model.norm.weight' is no LoRA factor, and not of a classifier",
        ),
        (
            lambda t: t.update({"base_model.model.score.running_mean": torch.zeros(2)}),
            "is no LoRA factor, and not of a classifier's head",
        ),
        (
            lambda t: t.update({"base_model.model.score.weight": torch.zeros(2, 2, 2)}),
            "is not a matrix",
        ),
        (
            lambda t: t.update({"base_model.model.score.weight": torch.zeros(2, 4).int()}),
            "is not a matrix",
        ),
        (lambda t: t["base_model.model.score.weight"].fill_(torch.nan), "that are not finite"),
        (
            lambda t: [t.pop(name) for name in list(t) if ".lora_" in name],
            "there are no LoRA factors",
        ),
    ],
)
def test_a_file_with_anything_but_factors_and_head_is_refused(folder, change, says):
    """The message names the key."""
    alter(folder, change)
    with pytest.raises(AdapterError, match=re.escape(says)):
        read_peft_folder(folder)
