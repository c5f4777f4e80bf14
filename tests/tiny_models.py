"""Base models of several architectures, so small that a test can make them."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
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
from fedlora.training.objectives import Objective, dpo_loss, dpo_margins, sft_loss

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

_GROUPED: dict[str, Any] = _SIZES | {"num_key_value_heads": 2}
_MIXTURE: dict[str, Any] = _GROUPED | {"num_experts_per_tok": 2, "moe_intermediate_size": 32}

MORE_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "qwen2": _GROUPED,
    "qwen3": _GROUPED | {"head_dim": 16},
    "mistral": _GROUPED,
    "gemma2": _GROUPED | {"head_dim": 16},
    "gemma3_text": _GROUPED | {"head_dim": 16},
    "phi": _SIZES,
    "phi3": _GROUPED | {"pad_token_id": 0},
    "gpt2": _SIZES,
    "gptj": _SIZES | {"rotary_dim": 8},
    "gpt_bigcode": _SIZES,
    "falcon": _SIZES,
    "opt": _SIZES | {"ffn_dim": 128, "word_embed_proj_dim": 64},
    "bloom": _SIZES,
    "mpt": _SIZES,
    "starcoder2": _GROUPED,
    "cohere": _SIZES,
    "olmo2": _SIZES,
    "granite": _GROUPED,
    "stablelm": _SIZES | {"num_key_value_heads": 4},
    "smollm3": _GROUPED | {"pad_token_id": 0},
    "lfm2": _GROUPED | {"full_attn_idxs": [1]},
    "mixtral": _GROUPED | {"num_local_experts": 4},
    "qwen2_moe": _MIXTURE | {"num_experts": 4, "shared_expert_intermediate_size": 32},
    "qwen3_moe": _MIXTURE | {"num_experts": 4, "head_dim": 16},
    "gpt_oss": _GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16},
    "xlstm": _SIZES | {"num_heads": 4},
}
"""Others that transformers loads by these names: what ``AutoConfig.for_model`` is told of each."""


def configuration(architecture: str) -> PretrainedConfig:
    """Return the configuration of one of the architectures above."""
    if known := ARCHITECTURES.get(architecture):
        return known
    config: PretrainedConfig = AutoConfig.for_model(
        architecture, **MORE_ARCHITECTURES[architecture]
    )
    return config


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
        """Return one row without its padding."""
        return self.example(index, rows=1)

    def example(self, index: int, *, rows: int) -> "Tokens":
        """Return an example of so many rows, padded as they need it."""
        own = slice(index * rows, (index + 1) * rows)
        length = int((self.input_ids[own] != 0).sum(dim=1).max())
        return Tokens(self.input_ids[own, :length], self.labels[own, :length])


def tiny_recipe(**keys: Any) -> Recipe:
    """Return a recipe that computes in float32 on the CPU unless told otherwise."""
    keys = {"bf16": False, "device": "cpu", "warmup_ratio": 0, "privacy": {"unit": "none"}} | keys
    return Recipe.model_validate({"datasets": [{"path": "standard-library"}], **keys})


def write_tiny(folder: Path, config: PretrainedConfig) -> Path:
    """Write a random model of a configuration to ``folder``, with the embedded tokenizer."""
    with torch.random.fork_rng(), quietly():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(resolve("embedded", None) / name, folder)
    return folder


def tiny_base(folder: Path, architecture: str = "llama", **keys: Any) -> BaseModel:
    """Write a random model to ``folder`` and load it with an adapter of random A and B."""
    write_tiny(folder, configuration(architecture))
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
    rows: int = 1,
) -> ClippedSum:
    """Return what a private step sums up before it adds noise."""
    total = ClippedSum([tensor.numel() for tensor in trained.tensors], clip_norm=clip_norm)
    with per_sample_gradients(trained, rows=rows) as per_sample:
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


def dpo_of(reference: AdapterState | None = None, *, beta: float = 0.1) -> Objective:
    """Return preference tuning against the base alone, or another adapter."""

    def losses(base: BaseModel, batch: Tokens) -> Tensor:
        return dpo_loss(dpo_margins(base, batch, reference=reference), beta=beta)

    return losses
