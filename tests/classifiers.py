"""Encoders so small that a test can make them, and texts with labels for them to tell apart."""

import csv
import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)

from fedlora.recipe import Recipe
from fedlora.training.base_model.network import quietly
from tests.tiny_models import tiny_recipe

LABELS = ("ham", "spam")
_WORDS = {
    "ham": ["meeting", "agenda", "minutes"],
    "spam": ["prize", "free", "click"],
    "both": ["the", "you", "please", "now"],
}
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
_IDS: dict[str, Any] = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3}
_SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.3,  # random features tell words apart, as trained ones do
}
_PLACES: dict[str, Any] = {"max_position_embeddings": 40, "pad_token_id": 0}
_BERT = _SIZES | _PLACES | {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}
_DISTILBERT: dict[str, Any] = {
    "vocab_size": 40,
    "dim": 16,
    "hidden_dim": 32,
    "n_layers": 2,
    "n_heads": 2,
    "initializer_range": 0.3,
    "dropout": 0,
    "attention_dropout": 0,
    "seq_classif_dropout": 0,
}

ARCHITECTURES: dict[str, tuple[PretrainedConfig, type[PreTrainedModel]]] = {
    "bert": (BertConfig(**_BERT), BertForMaskedLM),
    "roberta": (RobertaConfig(**_BERT), RobertaForMaskedLM),
    "distilbert": (DistilBertConfig(**_DISTILBERT, **_PLACES), DistilBertForMaskedLM),
    "modernbert": (
        ModernBertConfig(**_SIZES, **_IDS, bos_token_id=2, eos_token_id=3),
        ModernBertForMaskedLM,
    ),
    "llama": (LlamaConfig(**_SIZES, pad_token_id=None), LlamaForCausalLM),
}
"""As they are pretrained, without a head. They differ in what their classifiers lack: BERT's has a
pooler inside the trunk, RoBERTa's two layers in one module, DistilBERT's two modules, ModernBERT's
and Llama's one; Llama's has no bias, and pools the last token."""


def write_base(folder: Path, architecture: str = "bert") -> Path:
    """Write a random model with a tokenizer that puts [CLS] and [SEP] around a text."""
    config, kind = ARCHITECTURES[architecture]
    with torch.random.fork_rng(), quietly():
        torch.manual_seed(0)
        kind(config).save_pretrained(folder)
    words = [*_SPECIAL, *(word for words in _WORDS.values() for word in words)]
    tokenizer = Tokenizer(
        models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if architecture != "llama":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    ).save_pretrained(folder)
    return folder


def texts(count: int, *, seed: int = 0) -> list[tuple[str, str]]:
    """Return texts of uneven length with their labels, which their words give away."""
    generator = random.Random(seed)
    rows = []
    for _ in range(count):
        label = generator.choice(LABELS)
        words = generator.choices(_WORDS[label], k=4)
        words += generator.choices(_WORDS["both"], k=generator.randint(0, 6))
        generator.shuffle(words)
        rows.append((" ".join(words), label))
    return rows


def write_csv(path: Path, count: int, *, seed: int = 0) -> Path:
    """Write ``texts`` as a CSV file."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        writer.writerows(texts(count, seed=seed))
    return path


def classifier_recipe(**keys: Any) -> Recipe:
    """Return a recipe of a classifier that computes in float32 on the CPU."""
    keys = {"objective": "classification", "labels": list(LABELS), "sequence_len": 16} | keys
    return tiny_recipe(**keys)
