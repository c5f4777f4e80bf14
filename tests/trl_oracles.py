"""What TRL's trainers compute of single batches, with a model and an adapter of their own."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from fedlora.adapter import AdapterState
from fedlora.peft_folder import write_peft_folder

Trainer: TypeAlias = SFTTrainer | DPOTrainer
Batch: TypeAlias = Mapping[str, Any]

_PLAIN: dict[str, Any] = {
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "activation_checkpointing": False,
    "max_length": None,
    "disable_tqdm": True,
}


def sft_trainer(
    base: Path,
    state: AdapterState,
    rows: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
) -> SFTTrainer:
    """Return a trainer of assistant turns alone; the tokenizer's template marks them."""
    config = SFTConfig(output_dir=str(folder / "out"), assistant_only_loss=True, **_PLAIN)
    return SFTTrainer(
        _on_disk(base, state, folder),
        args=config,
        train_dataset=Dataset.from_list(list(rows)),
        processing_class=tokenizer,
    )


def dpo_trainer(
    base: Path,
    state: AdapterState,
    rows: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    reference: AdapterState | None,
    beta: float,
) -> DPOTrainer:
    """Return a trainer with the base, or another adapter, as reference.

    TRL takes the base if it puts a new adapter on a model itself, and the adapter as it was if the
    model had one; the values that are trained follow in either case.
    """
    network = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(
        r=state.spec.rank,
        lora_alpha=state.spec.alpha,
        target_modules=list(state.spec.target_modules),
        task_type="CAUSAL_LM",
    )
    trainer = DPOTrainer(
        network if reference is None else _on_disk(base, reference, folder),
        args=DPOConfig(output_dir=str(folder / "out"), beta=beta, **_PLAIN),
        train_dataset=Dataset.from_list(list(rows)),
        processing_class=tokenizer,
        peft_config=config if reference is None else None,
    )
    _load(trainer.model, state)
    return trainer


def loss_and_gradient(trainer: Trainer, batch: Batch, state: AdapterState) -> tuple[float, Tensor]:
    """Return a trainer's loss of a batch, and its gradient, flat, in the order of ``state``."""
    model = trainer.model
    model.train()
    model.zero_grad()
    loss = trainer.compute_loss(model, dict(batch))
    loss.backward()
    gradients = [parameter.grad.flatten() for parameter in _parameters(model, state)]
    return float(loss.detach()), torch.cat(gradients)


def _on_disk(base: Path, state: AdapterState, folder: Path) -> PeftModel:
    """Return the base with an adapter as PEFT reads it from the folder that we write."""
    write_peft_folder(state, folder / "adapter")
    network = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(network, folder / "adapter", is_trainable=True)


@torch.no_grad()
def _load(model: PeftModel, state: AdapterState) -> None:
    for parameter, (_, values) in zip(_parameters(model, state), state.factors(), strict=True):
        parameter.copy_(values)


def _parameters(model: PeftModel, state: AdapterState) -> list[torch.nn.Parameter]:
    found = dict(model.named_parameters())
    return [
        found[f"base_model.model.{tensor.name}.default.weight"] for tensor in state.spec.tensors
    ]
