"""The same training steps in three loops: ours, TRL's ``SFTTrainer``, and one written out by hand.

Each has a model of its own, the same factors, dtypes, attention, checkpointing, optimiser and rows,
and says when a step begins and ends.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, Protocol

import torch
from datasets import Dataset
from peft import get_peft_model
from peft.tuners.lora import LoraConfig
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PrinterCallback,
    TrainerCallback,
)
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from fedlora.data.batches import Batch
from fedlora.recipe import Recipe
from fedlora.training.base_model import BaseModel
from fedlora.training.base_model.network import quietly
from fedlora.training.gradient import plain_gradient
from fedlora.training.local import train_local
from fedlora.training.objectives import sft_loss

# PEFT asks transformers for a property by the name that it had in version 4.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")


@dataclass(frozen=True, kw_only=True)
class Work:
    """What each loop does."""

    base_model: str
    """Its folder."""
    adapter: Literal["lora", "qlora"]
    steps: int
    rows: int
    """In each step."""
    tokens: int
    """In each row; all are supervised."""
    checkpointing: bool

    @property
    def recipe(self) -> Recipe:
        """Ours; the others follow what it decides."""
        keys = {"base_model": self.base_model, "adapter": self.adapter, "lora_r": 16}
        batch = {"micro_batch_size": self.rows, "sequence_len": self.tokens}
        fixed = {"datasets": [{"path": "standard-library"}], "privacy": {"unit": "none"}}
        checkpointing = {"gradient_checkpointing": self.checkpointing}
        return Recipe.model_validate({**keys, **batch, **fixed, **checkpointing})

    def examples(self) -> list[Tensor]:
        """Return the rows of each step: random tokens."""
        generator = torch.Generator().manual_seed(0)
        shape = (self.rows, self.tokens)
        return [torch.randint(5, 2000, shape, generator=generator) for _ in range(self.steps)]


class Turn(Protocol):
    """Lets a loop take its steps, one block each."""

    def __call__(self) -> AbstractContextManager[None]:
        """Return the block of one step."""


class Loop(Protocol):
    """One of the three."""

    def __call__(self, turn: Turn) -> float:
        """Take all steps and return their mean loss."""


def ours(work: Work) -> Loop:
    """Return the loop of ``fedlora.training.local``."""
    recipe = work.recipe
    base = BaseModel.load(recipe)

    def loop(turn: Turn) -> float:
        def steps() -> Iterator[list[Batch]]:
            for ids in work.examples():
                with turn():
                    mask = torch.ones_like(ids)
                    yield [Batch(input_ids=ids, attention_mask=mask, labels=ids)]

        result = train_local(
            base,
            base.adapter(),
            steps(),
            gradient=plain_gradient(recipe),
            part=base.spec.part("AB"),
            recipe=recipe,
            first_step=0,
            total_steps=work.steps,
            seed="steps",
            objective=sft_loss,
        )
        return fmean(result.losses)

    return loop


def trl(work: Work) -> Loop:
    """Return ``SFTTrainer``'s loop."""
    network, factors = _network(work)
    rows = [row.tolist() for ids in work.examples() for row in ids]
    cuda, recipe = torch.cuda.is_available(), work.recipe
    trainer = SFTTrainer(
        network,
        args=SFTConfig(
            output_dir=str(Path(work.base_model) / "trl"),
            max_steps=work.steps,
            per_device_train_batch_size=work.rows,
            max_length=None,
            train_sampling_strategy="sequential",
            dataset_kwargs={"skip_prepare_dataset": True},
            activation_checkpointing=work.checkpointing,
            bf16=_in_bf16(network),
            use_cpu=not cuda,
            learning_rate=recipe.learning_rate,
            lr_scheduler_type=recipe.lr_scheduler,
            max_grad_norm=recipe.max_grad_norm,
            logging_steps=1,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=cuda,
        ),
        train_dataset=Dataset.from_dict({"input_ids": rows, "labels": rows}),
        processing_class=AutoTokenizer.from_pretrained(work.base_model),
        peft_config=factors,
    )
    for parameter in _trained(network):
        parameter.data = parameter.data.float()  # it rounds those of a quantised model to bfloat16

    def loop(turn: Turn) -> float:
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(_Told(turn))
        return trainer.train().training_loss

    return loop


class _Told(TrainerCallback):
    """Takes a turn for each step: fetching, computing, stepping, and what comes in between."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn

    def on_train_begin(self, *_: object, **__: object) -> None:
        self._begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: object) -> None:  # noqa: ANN401, ARG002 - Trainer's
        self._block.__exit__(None, None, None)
        if state.global_step < state.max_steps:
            self._begin()

    def _begin(self) -> None:
        self._block = self._turn()
        self._block.__enter__()


def plain(work: Work) -> Loop:
    """Return what one writes with transformers, PEFT and bitsandbytes alone."""
    network, factors = _network(work)
    with quietly():
        model, recipe = get_peft_model(network, factors), work.recipe
    if work.checkpointing:
        network.activation_checkpointing_enable()
    model.train()
    trained = _trained(model)
    optimizer = torch.optim.AdamW(trained, lr=recipe.learning_rate, fused=True)

    def loop(turn: Turn) -> float:
        losses = []
        for ids in work.examples():
            with turn():
                batch = ids.to(network.device)
                with torch.autocast(network.device.type, torch.bfloat16, enabled=_in_bf16(network)):
                    loss = model(input_ids=batch, labels=batch, use_cache=False).loss
                loss.backward()
                torch.nn.utils.clip_grad_norm_(trained, recipe.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss.item())
        return fmean(losses)

    return loop


LOOPS: Mapping[str, Callable[[Work], Loop]] = {"ours": ours, "TRL": trl, "plain": plain}


def _network(work: Work) -> tuple[PreTrainedModel, LoraConfig]:
    """Return the network as our loop loads it, without its factors, and what those are."""
    base = BaseModel.load(work.recipe)
    device, dtype, spec = base.device, base.dtype, base.spec
    attention = base.model.config._attn_implementation  # noqa: SLF001 - no public name for it
    del base
    quantised = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    with quietly():
        network = AutoModelForCausalLM.from_pretrained(
            work.base_model,
            dtype=dtype,
            device_map={"": device},
            attn_implementation=attention,
            quantization_config=quantised if work.adapter == "qlora" else None,
        )
    factors = LoraConfig(
        r=spec.rank,
        lora_alpha=int(spec.alpha),
        target_modules=list(spec.target_modules),
        task_type="CAUSAL_LM",
    )
    return network, factors


def _in_bf16(network: PreTrainedModel) -> bool:
    return bool(network.dtype == torch.bfloat16)


def _trained(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
