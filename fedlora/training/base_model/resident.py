"""A base model that stays in memory while adapters come and go."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedlora.adapter import AdapterSpec, AdapterState
from fedlora.errors import AdapterError, BaseModelError
from fedlora.recipe import Recipe
from fedlora.tensors import TensorSpec
from fedlora.training.base_model.classifier import (
    head_modules,
    make_trainable,
    prepare_to_pool,
)
from fedlora.training.base_model.facts import adapter_spec
from fedlora.training.base_model.files import resolve
from fedlora.training.base_model.network import (
    compute,
    load_network,
    load_skeleton,
    load_tokenizer,
    quietly,
)
from fedlora.training.base_model.trained_part import TrainedPart


@dataclass(frozen=True, kw_only=True, eq=False)
class BaseModel:
    """A base model with one LoRA adapter on it, whose values are replaced in place.

    Guarantees:
        - Nothing but the adapter's tensors can be trained, and they are float32.
        - They are exactly the tensors of ``spec``.
        - A base in NF4 gives the same gradients before and after it was used in evaluation mode.
    """

    model: PeftModel
    tokenizer: PreTrainedTokenizerBase
    spec: AdapterSpec
    device: torch.device
    dtype: torch.dtype
    """Of the computation, and of the base's weights where they are not in NF4."""

    @classmethod
    def load(cls, recipe: Recipe) -> Self:
        """Load the recipe's base model and put the recipe's initial adapter on it.

        Raises:
            BaseModelError: the model is not there, is incomplete, or cannot carry the adapter.
        """
        folder = resolve(recipe.base_model, recipe.base_model_revision)
        spec = adapter_spec(recipe, folder, load_skeleton(folder, recipe.labels))
        device, dtype = compute(recipe)
        network = load_network(folder, recipe, device=device, dtype=dtype, heads=spec.heads)
        base = cls(
            model=_with_lora(network, spec, recipe),
            tokenizer=load_tokenizer(folder),
            spec=spec,
            device=device,
            dtype=dtype,
        )
        if recipe.labels:
            prepare_to_pool(network, pad_token_id=base.pad_token_id)
        base.load_adapter(AdapterState.initial(spec, seed=recipe.seed))
        return base

    @property
    def pad_token_id(self) -> int:
        """The token that fills short rows: the tokenizer's own, or its end of sequence."""
        for token in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if isinstance(token, int):
                return token
        return 0  # any will do: no real token sees the padding, and it has no label

    @cached_property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """The trainable tensors in the order of ``spec.tensors``.

        Raises:
            BaseModelError: PEFT put other factors on the network than ``spec`` says.
        """
        trainable = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        names = list(map(_peft_name, self.spec.tensors))
        if set(names) != set(trainable):
            raise BaseModelError(
                f"lora_target_modules: PEFT adapts other modules of {self.spec.base_model} than "
                f"its configuration shows, such as {min(set(names) ^ set(trainable))}. "
                "Name the modules one by one."
            )
        return tuple(trainable[name] for name in names)

    @torch.no_grad()
    def load_adapter(self, state: AdapterState) -> None:
        """Copy an adapter's values into the model.

        Raises:
            AdapterError: the adapter's tensors are not those of ``spec``.
        """
        if state.spec.tensors != self.spec.tensors:
            raise AdapterError(
                f"The adapter's {len(state.spec.tensors)} tensors are not the "
                f"{len(self.spec.tensors)} that the recipe puts on {self.spec.base_model}: base "
                "model, rank and target modules must be those that it was trained with."
            )
        for parameter, (_, values) in zip(self.parameters, state.factors(), strict=True):
            parameter.copy_(values)

    @torch.no_grad()
    def adapter(self) -> AdapterState:
        """Return a copy of the adapter's values."""
        flat = torch.cat([parameter.flatten() for parameter in self.parameters])
        return AdapterState(spec=self.spec, values=flat.cpu())

    @contextmanager
    def training(self, part: AdapterSpec) -> Iterator[TrainedPart]:
        """Train one part of the adapter inside the block."""
        self.model.train()
        parameters = self.parameters
        try:
            yield TrainedPart(self.model, parameters, whole=self.spec, part=part)
        finally:
            for parameter in parameters:
                parameter.requires_grad_(True)  # noqa: FBT003 - torch's own signature
                parameter.grad = None

    @contextmanager
    def adapter_off(self) -> Iterator[None]:
        """Compute with the base alone inside the block; without a head all labels are alike."""
        with self._heads_off(), self.model.disable_adapter():
            yield

    @contextmanager
    def _heads_off(self) -> Iterator[None]:
        """Let heads be zero inside the block: the base has none of its own."""
        pairs = zip(self.parameters, self.spec.tensors, strict=True)
        heads = [parameter.detach() for parameter, tensor in pairs if not tensor.is_factor]
        kept = [head.clone() for head in heads]
        try:
            for head in heads:
                head.zero_()
            yield
        finally:
            for head, values in zip(heads, kept, strict=True):
                head.copy_(values)

    def autocast(self) -> torch.autocast:
        """Compute in ``dtype`` inside the block, with the float32 factors too."""
        enabled = self.dtype != torch.float32
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def logits(self, input_ids: Tensor, *, keep: Tensor) -> Tensor:
        """Return the logits at some places of a batch that is padded on the right.

        No attention mask is needed: attention is causal, so no real token sees the padding.

        Args:
            input_ids: ``(batch, length)`` int64, on any device.
            keep: ``(batch, length)`` bool, on the base's device.

        Returns:
            ``(keep.sum(), vocabulary)`` float32, in row-major order of ``keep``.
        """
        ids = input_ids.to(self.device)
        with self.autocast():
            output = self.model(input_ids=ids, use_cache=False, logits_to_keep=keep)
        logits: Tensor = output.logits
        return logits.float()

    def class_logits(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the logits of each text's labels; the base must be a sequence classifier.

        Args:
            input_ids: ``(batch, length)`` int64, on any device, padded on the right.
            attention_mask: ``(batch, length)`` int64, 0 where padded: encoders would see it.

        Returns:
            ``(batch, labels)`` float32.
        """
        ids, mask = input_ids.to(self.device), attention_mask.to(self.device)
        with self.autocast():
            logits: Tensor = self.model(input_ids=ids, attention_mask=mask).logits
        return logits.float()


def _with_lora(network: PreTrainedModel, spec: AdapterSpec, recipe: Recipe) -> PeftModel:
    """Put float32 factors on the network, and freeze all else but its heads, if it has any."""
    config = LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,  # type: ignore[arg-type]  # PEFT divides it, any number will do
        lora_dropout=recipe.lora_dropout,
        target_modules=list(spec.target_modules),
        exclude_modules=head_modules(spec) or None,
        task_type=None if spec.heads else "CAUSAL_LM",  # for SEQ_CLS, PEFT would copy the head
    )
    with (
        quietly(),
        torch.random.fork_rng(devices=[]),
    ):  # PEFT draws initial values, which ours replace
        model = get_peft_model(network, config)
    make_trainable(network, spec.heads)
    for module in model.modules():
        if isinstance(module, LoraLayer):
            # Autocast would cast the float32 copy of the input back again: 2 to 10 % of a step.
            module.cast_input_dtype_enabled = False
    if recipe.gradient_checkpointing:
        network.activation_checkpointing_enable()
    return model


def _peft_name(tensor: TensorSpec) -> str:
    """Return what a tensor is called in the network; a head has no adapter's name in it."""
    adapter = ".default.weight" if tensor.is_factor else ""
    return f"base_model.model.{tensor.name}{adapter}"
