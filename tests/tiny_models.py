"""Base models of several architectures, so small that a test can make them."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPTNeoXConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
)

from fedlora.adapter import AdapterState
from fedlora.privacy.dp_sgd.clipping import ClippedSum
from fedlora.privacy.dp_sgd.per_sample import in_shape, per_sample_gradients
from fedlora.recipe import Recipe
from fedlora.training.base_model import BaseModel, resolve
from fedlora.training.base_model.network import quietly
from fedlora.training.base_model.trained_part import TrainedPart
from fedlora.training.objectives import Objective, sft_loss

_SIZES: dict[str, Any] = {
    "vocab_size": 2048,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}

ARCHITECTURES: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**_SIZES, num_key_value_heads=2),
    "gpt-neox": GPTNeoXConfig(**_SIZES),
    "gemma": GemmaConfig(**_SIZES, num_key_value_heads=1, head_dim=16),
}
"""They differ in attention (grouped, fused with bias, one key for all), in normalisation and in
whether layers run side by side."""


@dataclass(frozen=True)
class Tokens:
    """A batch: the least that training asks of one."""

    input_ids: Tensor
    labels: Tensor

    @property
    def tokens(self) -> int:
        """Supervised tokens."""
        return int((self.labels[:, 1:] != -100).sum())

    def row(self, index: int) -> "Tokens":
        """Return one example without its padding."""
        length = int((self.input_ids[index] != 0).sum())
        rows = slice(index, index + 1)
        return Tokens(self.input_ids[rows, :length], self.labels[rows, :length])


def tiny_recipe(**keys: Any) -> Recipe:
    """Return a recipe that computes in float32 on the CPU unless told otherwise."""
    keys = {"bf16": False, "device": "cpu", "warmup_ratio": 0, "privacy": {"unit": "none"}} | keys
    return Recipe.model_validate({"datasets": [{"path": "standard-library"}], **keys})


def tiny_base(folder: Path, architecture: str = "llama", **keys: Any) -> BaseModel:
    """Write a random model to ``folder`` and load it with an adapter of random A and B."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = AutoModelForCausalLM.from_config(ARCHITECTURES[architecture])
    network.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(resolve("embedded", None) / name, folder)
    base = BaseModel.load(tiny_recipe(base_model=str(folder), **keys))
    generator = torch.Generator().manual_seed(1)
    values = 0.1 * torch.randn(base.spec.size, generator=generator)
    base.load_adapter(AdapterState(spec=base.spec, values=values))
    return base


def random_tokens(*lengths: int, seed: int = 0) -> Tokens:
    """Return random examples of these lengths; each one's first third is its prompt."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(5, 2000, (len(lengths), max(lengths)), generator=generator)
    labels = input_ids.clone()
    for row, length in enumerate(lengths):
        input_ids[row, length:] = 0
        labels[row, length:] = -100
        labels[row, : length // 3] = -100
    return Tokens(input_ids, labels)


def private_sum(
    base: BaseModel,
    micro_batches: Sequence[Tokens],
    trained: TrainedPart,
    *,
    clip_norm: float,
    objective: Objective = sft_loss,
) -> ClippedSum:
    """Return what a private step sums up before it adds noise."""
    total = ClippedSum([tensor.numel() for tensor in trained.tensors], clip_norm=clip_norm)
    with per_sample_gradients(trained) as per_sample:
        for batch in micro_batches:
            losses = objective(base, batch)
            losses.sum().backward()
            total.add(per_sample.take(len(losses)))
    return total


def row_major(total: ClippedSum, trained: TrainedPart) -> Tensor:
    """Return a sum's values, each tensor's in the order in which it has them itself."""
    parts = zip(total.values.split(total.sizes), trained.tensors, strict=True)
    return torch.cat([in_shape(part, tensor.shape).flatten() for part, tensor in parts])


def new_llama(name: str) -> LlamaForCausalLM:
    """Return the same small Llama each time, called ``name``, for PEFT to write adapters of."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=32,
    )
    with quietly():
        model = LlamaForCausalLM(config)
    model.name_or_path = name
    return model
