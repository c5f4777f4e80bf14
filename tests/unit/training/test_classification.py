"""Classifiers: their head, their loss, and how they are loaded."""

import json
import math
import re

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertForSequenceClassification

from fedlora.adapter import AdapterState
from fedlora.data.examples import Labelled
from fedlora.data.labels import LabelledBatch, collate_texts, tokenize_text
from fedlora.errors import BaseModelError
from fedlora.runtime.lock import locked, spec_of
from fedlora.training.base_model import BaseModel, describe
from fedlora.training.base_model.classifier import head_tensors
from fedlora.training.base_model.network import load_skeleton, quietly
from fedlora.training.evaluation import Share, evaluate
from fedlora.training.gradient import plain_gradient
from fedlora.training.local import train_local
from fedlora.training.objectives import label_loss, label_measure
from tests.classifiers import ARCHITECTURES, LABELS, classifier_recipe, texts, write_base

HEADS = {
    "bert": {
        "bert.pooler.dense.weight": (16, 16),
        "bert.pooler.dense.bias": (16,),
        "classifier.weight": (2, 16),
        "classifier.bias": (2,),
    },
    "roberta": {
        "classifier.dense.weight": (16, 16),
        "classifier.dense.bias": (16,),
        "classifier.out_proj.weight": (2, 16),
        "classifier.out_proj.bias": (2,),
    },
    "distilbert": {
        "pre_classifier.weight": (16, 16),
        "pre_classifier.bias": (16,),
        "classifier.weight": (2, 16),
        "classifier.bias": (2,),
    },
    "modernbert": {"classifier.weight": (2, 16), "classifier.bias": (2,)},
    "llama": {"score.weight": (2, 16)},
}


@pytest.fixture(params=ARCHITECTURES)
def folder(request, tmp_path):
    """Return the folder of a base of each architecture."""
    return write_base(tmp_path / "base", request.param)


def trained(base: BaseModel, *, seed: int = 1) -> AdapterState:
    """Return an adapter that changes the base, and is not what a run begins with."""
    generator = torch.Generator().manual_seed(seed)
    values = 0.3 * torch.randn(base.spec.size, generator=generator)
    return AdapterState(spec=base.spec, values=values)


def batch_of(base: BaseModel, *, count: int = 5, length: int | None = None):
    rows = [
        tokenize_text(Labelled(*row), base.tokenizer, labels=LABELS, sequence_len=16)
        for row in texts(count)
    ]
    return collate_texts(rows, pad_token_id=base.pad_token_id, length=length)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_head_is_what_the_base_has_not_learned(tmp_path, architecture):
    """Each parameter is one tensor, behind all factors, and carries no LoRA itself."""
    folder = write_base(tmp_path / "base", architecture)
    spec = describe(classifier_recipe(base_model=str(folder))).spec
    assert {head.name: head.shape for head in spec.heads} == HEADS[architecture]
    assert spec.tensors[-len(spec.heads) :] == spec.heads
    assert not {head.module.rpartition(".")[0] for head in spec.heads} & set(spec.modules)


def test_the_loss_is_that_of_each_text_alone(folder):
    """Unpadded and by transformers' own loss; the padding of a batch changes nothing."""
    base = BaseModel.load(classifier_recipe(base_model=str(folder)))
    base.load_adapter(trained(base))
    base.model.eval()
    network, batch = base.model.get_base_model(), batch_of(base, length=24)
    with torch.no_grad():
        losses = label_loss(base, batch)
        for place, length in enumerate(batch.attention_mask.sum(dim=1).tolist()):
            alone = batch.input_ids[place : place + 1, :length]
            logits = network(input_ids=alone).logits
            expected = cross_entropy(logits, batch.labels[place : place + 1])
            torch.testing.assert_close(losses[place], expected, rtol=1e-5, atol=1e-6)
    assert losses.dtype == torch.float32
    assert losses.shape == (5,)


def test_a_decoder_without_a_padding_token_pools_the_last_one(tmp_path):
    """Its configuration names none, so that transformers alone would refuse a batch."""
    folder = write_base(tmp_path / "base", "llama")
    assert json.loads((folder / "config.json").read_text())["pad_token_id"] is None
    base = BaseModel.load(classifier_recipe(base_model=str(folder)))
    base.model.eval()
    batch = batch_of(base)
    changed = batch.input_ids.clone()
    for place, length in enumerate(batch.attention_mask.sum(dim=1).tolist()):
        changed[place, length - 1] = 4 + (changed[place, length - 1] - 3) % 8
    with torch.no_grad():
        one = base.class_logits(batch.input_ids, batch.attention_mask)
        other = base.class_logits(changed, batch.attention_mask)
    assert ((one - other).abs().amax(dim=1) > 1e-6).all()


@pytest.mark.parametrize("adapter", ["lora", "qlora"])
@pytest.mark.parametrize("bf16", [False, True])
def test_the_head_is_float32_and_whole(folder, adapter, bf16):
    """Over a base in NF4 or bfloat16 too; it begins with what the seed gives."""
    recipe = classifier_recipe(base_model=str(folder), adapter=adapter, bf16=bf16, seed=5)
    base = BaseModel.load(recipe)
    assert all(parameter.dtype == torch.float32 for parameter in base.parameters)
    modules = {head.module.rpartition(".")[0] for head in base.spec.heads}
    for name, module in base.model.get_base_model().named_modules():
        if isinstance(module, Linear4bit):
            assert name not in modules
    initial = AdapterState.initial(base.spec, seed=5)
    assert torch.equal(base.adapter().values, initial.values)
    assert label_loss(base, batch_of(base)).isfinite().all()


def test_training_moves_the_head_and_lowers_the_loss(folder):
    """The adapter with it; nothing else of the base is moved."""
    recipe = classifier_recipe(base_model=str(folder), learning_rate=1e-2, lora_r=4)
    base = BaseModel.load(recipe)
    batch, received = batch_of(base, count=16), AdapterState.initial(base.spec, seed=0)
    before = {name: p.clone() for name, p in base.model.named_parameters() if not p.requires_grad}
    result = train_local(
        base,
        received,
        [[batch]] * 15,
        gradient=plain_gradient(recipe),
        part=base.spec,
        recipe=recipe,
        first_step=0,
        total_steps=15,
        seed="",
        objective=label_loss,
    )
    assert result.losses[-1] < result.losses[0] - 0.2
    assert (result.examples, result.tokens) == (240, 240)
    beginning = dict(received.factors())
    for tensor, values in result.state.factors():
        assert not torch.equal(values, beginning[tensor])
    after = dict(base.model.named_parameters())
    assert all(torch.equal(after[name], values) for name, values in before.items())


def test_a_part_without_the_head_leaves_it(folder):
    """And one of the head alone trains nothing else."""
    recipe = classifier_recipe(base_model=str(folder))
    base = BaseModel.load(recipe)
    received = trained(base)
    for kinds in (("B",), ("head",)):
        part = base.spec.part(kinds)
        result = train_local(
            base,
            received,
            [[batch_of(base)]],
            gradient=plain_gradient(recipe),
            part=part,
            recipe=recipe,
            first_step=0,
            total_steps=1,
            seed="",
            objective=label_loss,
        )
        now = dict(result.state.factors())
        for tensor, values in received.factors():
            assert torch.equal(now[tensor], values) == (tensor.factor not in kinds)


def test_an_evaluation_sums_over_texts(folder):
    """Each counts once; of each class there are hits, guesses and texts, by their definition."""
    base = BaseModel.load(classifier_recipe(base_model=str(folder)))
    state, batches = trained(base), [batch_of(base, count=5), batch_of(base, count=3)]
    found = evaluate(base, state, batches, measure=label_measure)
    with torch.no_grad():
        losses = torch.cat([label_loss(base, batch) for batch in batches])
        answers = torch.cat(
            [base.class_logits(b.input_ids, b.attention_mask).argmax(dim=1) for b in batches]
        )
    assert found.tokens == 8
    assert found.loss == pytest.approx(float(losses.mean()))
    labels = torch.cat([batch.labels for batch in batches])
    pairs = list(zip(labels.tolist(), answers.tolist(), strict=True))
    assert found.shares == {
        "label_accuracy": Share(total=sum(there == said for there, said in pairs), count=8)
    } | {
        f"f1.{k}": Share(
            total=2 * pairs.count((k, k)),
            count=sum(there == k for there, _ in pairs) + sum(said == k for _, said in pairs),
        )
        for k in range(2)
    }
    assert 0 <= found.means["macro_f1"] <= 1


@pytest.mark.parametrize(("classes", "counted"), [(100, 100), (101, 0)])
def test_of_more_than_a_hundred_classes_none_is_counted_by_itself(classes, counted):
    """Their names could not leave a site; the accuracy is counted all the same."""

    class Uniform:
        device = torch.device("cpu")

        def class_logits(self, input_ids, _attention_mask):
            return torch.eye(classes)[: len(input_ids)]

    batch = LabelledBatch(torch.zeros(3, 2), torch.ones(3, 2), torch.tensor([0, 1, 5]))
    shares = label_measure(Uniform(), batch).shares
    assert shares.pop("label_accuracy") == Share(total=2, count=3)
    assert len(shares) == counted


def test_without_adapter_and_head_all_labels_are_alike(folder):
    """Which is what a base knows that has no head; the head is there again afterwards."""
    base = BaseModel.load(classifier_recipe(base_model=str(folder)))
    state, batch = trained(base), batch_of(base)
    alone = evaluate(base, None, [batch], measure=label_measure)
    assert alone.loss == pytest.approx(math.log(2))
    base.load_adapter(state)
    with base.adapter_off():
        pass
    assert torch.equal(base.adapter().values, state.values)


def test_a_head_of_other_labels_is_replaced(tmp_path):
    """A base that was a classifier of five is one of two, whose head begins anew."""
    folder = write_base(tmp_path / "base")
    config = BertConfig.from_pretrained(folder, num_labels=5)
    with torch.random.fork_rng(), quietly():
        BertForSequenceClassification(config).save_pretrained(folder)
    base = BaseModel.load(classifier_recipe(base_model=str(folder)))
    assert {head.name: head.shape for head in base.spec.heads} == {
        "classifier.weight": (2, 16),
        "classifier.bias": (2,),
    }
    assert base.model.get_base_model().config.id2label == {0: "ham", 1: "spam"}


def test_a_head_of_the_same_labels_begins_anew_too(tmp_path):
    """An aggregator has no base, so that all begin with what the seed gives."""
    folder = write_base(tmp_path / "base")
    config = BertConfig.from_pretrained(folder, num_labels=2)
    with torch.random.fork_rng(), quietly():
        BertForSequenceClassification(config).save_pretrained(folder)
    base = BaseModel.load(classifier_recipe(base_model=str(folder), seed=3))
    assert torch.equal(base.adapter().values, AdapterState.initial(base.spec, seed=3).values)


def test_incomplete_weights_are_refused(tmp_path):
    """What the trunk lacks is no head to be trained."""
    folder = write_base(tmp_path / "base")
    weights = load_file(folder / "model.safetensors")
    del weights["bert.encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BaseModelError, match=r"lack 1 tensors.*layer\.1\.output\.dense\.weight"):
        describe(classifier_recipe(base_model=str(folder)))


def test_a_base_without_a_classifier_is_refused(tmp_path):
    """Its configuration is of a model that transformers has no sequence classifier of."""
    folder = write_base(tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "vit"}))
    with pytest.raises(BaseModelError, match="cannot be loaded as a sequence classifier"):
        load_skeleton(folder, LABELS)


def test_a_head_of_other_modules_is_refused(tmp_path, monkeypatch):
    """A normalisation in it would not begin with zeros."""
    folder = write_base(tmp_path / "base")
    build = BertForSequenceClassification.__init__

    def with_norm(self, config):
        build(self, config)
        self.classifier = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 2))

    monkeypatch.setattr(BertForSequenceClassification, "__init__", with_norm)
    with pytest.raises(BaseModelError, match=re.escape("classifier.0.weight of a LayerNorm")):
        head_tensors(folder, LABELS)


def test_a_locked_recipe_knows_the_head(folder):
    """The aggregator's specification is the site's, and so are the values that all begin with."""
    recipe = classifier_recipe(base_model=str(folder), seed=9)
    facts = describe(recipe)
    lock = locked(recipe, facts.spec, facts.digests)
    again = type(recipe).from_yaml(lock.to_yaml())
    assert spec_of(again) == facts.spec
    assert describe(again).spec == facts.spec
    ours, theirs = (AdapterState.initial(each, seed=9) for each in (spec_of(again), facts.spec))
    assert torch.equal(ours.values, theirs.values)


def test_a_base_that_mixes_examples_is_refused(tmp_path, monkeypatch):
    """An encoder may look at all tokens of a text, but at none of another's."""
    folder = write_base(tmp_path / "base")
    forward = BertForSequenceClassification.forward

    def mixed(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        output.logits = output.logits - output.logits.mean(dim=0)
        return output

    monkeypatch.setattr(BertForSequenceClassification, "forward", mixed)
    with pytest.raises(BaseModelError, match="lets examples of a batch see each other"):
        BaseModel.load(classifier_recipe(base_model=str(folder)))
