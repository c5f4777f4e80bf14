"""A base model that stays in memory while adapters come and go."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from typing import Any, Self

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from fedlora.adapter import AdapterSpec, AdapterState
from fedlora.errors import AdapterError, BaseModelError
from fedlora.recipe import Recipe
from fedlora.training.base_model.classifier import prepare_to_pool
from fedlora.training.base_model.facts import describe
from fedlora.training.base_model.files import resolve
from fedlora.training.base_model.lora import peft_name, with_lora
from fedlora.training.base_model.network import load_network, load_tokenizer
from fedlora.training.base_model.probe import require_none, require_places, require_trainable
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
            BaseModelError: the model is not there, is incomplete, has no room in memory, or cannot
                carry the adapter.
        """
        folder, facts = resolve(recipe.base_model, recipe.base_model_revision), describe(recipe)
        facts.require_room(recipe)
        network = load_network(folder, recipe, facts.placement, heads=facts.spec.heads)
        base = cls(
            model=with_lora(network, facts.spec, recipe),
            tokenizer=load_tokenizer(folder),
            spec=facts.spec,
            device=facts.placement.device,
            dtype=facts.placement.dtype,
        )
        if facts.spec.heads:
            prepare_to_pool(network, pad_token_id=base.pad_token_id)
        base.load_adapter(AdapterState.initial(facts.spec, seed=recipe.seed))
        base.require_trainable(length=recipe.sequence_len)
        return base

    @property
    def pad_token_id(self) -> int:
        """The token that fills short rows: the tokenizer's own, or its end of sequence."""
        embedded = self.model.get_input_embeddings().weight.shape[0]
        for token in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if isinstance(token, int) and token < embedded:  # some tokenizers add one for nothing
                return token
        return 0  # any will do: no real token sees the padding, and it has no label

    @cached_property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """The trainable tensors in the order of ``spec.tensors``.

        Raises:
            BaseModelError: PEFT put other factors on the network than ``spec`` says.
        """
        trainable = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        names = {tensor.name: peft_name(tensor) for tensor in self.spec.tensors}
        missing = [name for name, theirs in names.items() if theirs not in trainable]
        require_none(
            missing,
            among=names,
            what="are names by which PEFT means the experts of this mixture",
        )
        if other := trainable.keys() - set(names.values()):
            raise BaseModelError(
                f"lora_target_modules: PEFT adapts other modules of {self.spec.base_model} than "
                f"its configuration shows, such as {min(other)}. Name the modules one by one."
            )
        return tuple(trainable[name] for name in names.values())

    def require_trainable(self, *, length: int) -> None:
        """Do nothing if training on the logits teaches what it seems to.

        Args:
            length: of the longest row, in tokens.

        Raises:
            BaseModelError: the network is not causal, mixes examples, never calls an adapted
                module, or has no places for so many tokens.
        """

        def forward(ids: Tensor) -> Tensor:
            if self.spec.heads:
                return self.class_logits(ids, torch.ones_like(ids))
            with self.autocast():
                logits: Tensor = self.model(input_ids=ids.to(self.device), use_cache=False).logits
            return logits

        self.model.eval()
        names = [tensor.name for tensor in self.spec.tensors]
        factors = dict(zip(names, self.parameters, strict=True))
        network: Any = self.model.get_base_model()
        require_trainable(network, factors, forward)
        require_places(network, length, self._last_logits)

    def _last_logits(self, ids: Tensor) -> Tensor:
        """Return what is computed of whole rows at their ends, without the logits of all places."""
        if self.spec.heads:
            return self.class_logits(ids, torch.ones_like(ids))
        keep = torch.zeros_like(ids, dtype=torch.bool, device=self.device)
        keep[:, -1] = True
        return self.logits(ids, keep=keep)

    @cached_property
    def _heads(self) -> tuple[nn.Parameter, ...]:
        pairs = zip(self.parameters, self.spec.tensors, strict=True)
        return tuple(parameter for parameter, tensor in pairs if not tensor.is_factor)

    @cached_property
    def _adapted(self) -> tuple[LoraLayer, ...]:
        return tuple(each for each in self.model.modules() if isinstance(each, LoraLayer))

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
        flat = torch.cat([parameter.flatten().cpu() for parameter in self.parameters])
        return AdapterState(spec=self.spec, values=flat)

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
        trained = [parameter.requires_grad for parameter in self.parameters]
        on = [layer for layer in self._adapted if not layer.disable_adapters]
        for layer in on:  # PEFT's own context looks at each parameter: a tenth of a second
            layer.enable_adapters(enabled=False)
        try:
            with _restored(self._heads):
                for head in self._heads:
                    head.detach().zero_()
                yield
        finally:
            for layer in on:
                layer.enable_adapters(enabled=True)
            for parameter, wanted in zip(self.parameters, trained, strict=True):
                parameter.requires_grad_(wanted)  # PEFT would have all factors trained

    @contextmanager
    def frozen(self, state: AdapterState | None) -> Iterator[None]:
        """Compute with another adapter, or with the base alone if ``None``, inside the block.

        Nothing is drawn: dropout is off. No gradients are kept.

        Guarantees:
            The adapter, what of it is trained, and the mode are as before after the block.

        Raises:
            AdapterError: as ``load_adapter``.
        """
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad(), self.adapter_off() if state is None else self._carrying(state):
                yield
        finally:
            self.model.train(training)

    @contextmanager
    def _carrying(self, state: AdapterState) -> Iterator[None]:
        with _restored(self.parameters):
            self.load_adapter(state)
            yield

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
        ids, places = input_ids.to(self.device), {"logits_to_keep": keep} if self._keeps else {}
        with self.autocast():
            output = self.model(input_ids=ids, use_cache=False, **places)
        logits: Tensor = output.logits if self._keeps else output.logits[keep]
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

    @cached_property
    def _keeps(self) -> bool:
        """Whether the network can leave out the logits of other places before it computes them.

        Few architectures cannot; and none whose layers lie on several devices, where ``keep`` is
        on another than the last layer.
        """
        network = self.model.get_base_model()
        whole = len(set(getattr(network, "hf_device_map", {"": None}).values())) == 1
        return whole and "logits_to_keep" in signature(network.forward).parameters


@contextmanager
def _restored(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Let parameters have their values of before again after the block."""
    kept = [parameter.detach().clone() for parameter in parameters]
    try:
        yield
    finally:
        for parameter, values in zip(parameters, kept, strict=True):
            parameter.detach().copy_(values)
