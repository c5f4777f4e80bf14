"""A base model and several adapters on it, which answer the same question side by side."""

from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any, Self

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from fedlora.adapter import AdapterState
from fedlora.errors import AdapterError
from fedlora.recipe import Recipe
from fedlora.training.base_model.files import resolve
from fedlora.training.base_model.memory import weight_bytes
from fedlora.training.base_model.network import (
    load_network,
    load_skeleton,
    load_tokenizer,
    quietly,
)
from fedlora.training.base_model.placement import compute, place
from fedlora.training.base_model.targets import linear_modules

_BASE = "__base__"
"""What PEFT calls having no adapter, in a batch of several."""


class Panel:
    """A base model in memory, once, and adapters on it that can be replaced.

    Guarantees:
        Each adapter answers as it would alone: in a batch, an adapter computes for its own row.

    Args:
        network: the base; it stays in evaluation mode.
        tokenizer: the base's.
        adapters: at least one, of any ranks and modules.
        dtype: of the computation.

    Raises:
        AdapterError: an adapter does not fit the base.
    """

    def __init__(
        self,
        network: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        adapters: Sequence[AdapterState],
        *,
        dtype: torch.dtype,
    ) -> None:
        self._tokenizer = tokenizer
        self._device, self._dtype = network.device, dtype
        self._shapes = linear_modules(network)
        self._fresh = map("adapter-{}".format, count())
        self._names = [next(self._fresh)]
        first = self._config(adapters[0])
        with quietly(), torch.random.fork_rng(devices=[]):
            self._model = get_peft_model(network, first, adapter_name=self._names[0])
        self._fill(self._names[0], adapters[0])
        self._names += [self._put(state) for state in adapters[1:]]
        self._model.eval()

    @classmethod
    def load(cls, recipe: Recipe, adapters: Sequence[AdapterState]) -> Self:
        """Load the recipe's base model and put adapters on it.

        Raises:
            BaseModelError: the model is not there, or is incomplete.
            AdapterError: an adapter does not fit the base.
        """
        for state in adapters:
            _require_answering(state)
        folder = resolve(recipe.base_model, recipe.base_model_revision)
        skeleton, (device, dtype) = load_skeleton(folder), compute(recipe)
        shapes = linear_modules(skeleton)
        needed = weight_bytes(skeleton, shapes, quantization=recipe.quantization, dtype=dtype)
        placement = place(device, dtype, needed=needed)
        network = load_network(folder, recipe, placement)
        return cls(network, load_tokenizer(folder), adapters, dtype=placement.dtype)

    def replace(self, number: int, state: AdapterState) -> None:
        """Put another adapter in one's place, the first being 0.

        Raises:
            AdapterError: the adapter does not fit the base; the one before stays.
        """
        before, self._names[number] = self._names[number], self._put(state)
        self._model.set_adapter(self._names[number])  # PEFT warns if it has to choose itself
        self._model.delete_adapter(before)
        self._model.eval()

    @torch.no_grad()
    def answers(
        self, prompt: str | Sequence[Mapping[str, str]], *, max_new_tokens: int
    ) -> list[str]:
        """Return the greedy answers: that of the base, and that with each adapter.

        Args:
            prompt: a question, or messages of ``role`` and ``content``. Where the tokenizer has no
                chat template, the model goes on from the contents, one a line.
            max_new_tokens: the longest answer, in tokens.
        """
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        speakers = [_BASE, *self._names]
        input_ids = self._tokens(messages).expand(len(speakers), -1)
        ends = self._ends()
        config = GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=ends or None,
            pad_token_id=ends[0] if ends else 0,  # any will do: nothing after an end is read
        )
        with self._autocast(), quietly():
            output = self._model.generate(
                input_ids=input_ids,
                attention_mask=torch.ones_like(input_ids),
                generation_config=config,
                adapter_names=speakers,
            )
        return [self._text(row, ends) for row in output[:, input_ids.shape[1] :].tolist()]

    def _config(self, state: AdapterState) -> LoraConfig:
        """Return PEFT's configuration of an adapter that fits the base.

        Raises:
            AdapterError: it does not fit.
        """
        _require_answering(state)
        for module, down, up in state.pairs():
            shape = (up.shape[0], down.shape[1])
            if self._shapes.get(module) != shape:
                raise AdapterError(
                    f"{module}: an adapter of a linear module of shape {shape} does not fit "
                    f"{state.spec.base_model}, where it is {self._shapes.get(module, 'none')}."
                )
        return LoraConfig(
            r=state.spec.rank,
            lora_alpha=state.spec.alpha,  # type: ignore[arg-type]  # PEFT divides it
            target_modules=[module for module, _, _ in state.pairs()],
            task_type="CAUSAL_LM",
        )

    def _put(self, state: AdapterState) -> str:
        """Put one more adapter on the base, and return PEFT's name of it."""
        config, name = self._config(state), next(self._fresh)
        with quietly(), torch.random.fork_rng(devices=[]):  # PEFT draws values, which ours replace
            self._model.add_adapter(name, config)
        self._fill(name, state)
        return name

    @torch.no_grad()
    def _fill(self, name: str, state: AdapterState) -> None:
        parameters = dict(self._model.named_parameters())
        for tensor, values in state.factors():
            parameters[f"base_model.model.{tensor.name}.{name}.weight"].copy_(values)

    def _tokens(self, messages: Sequence[Mapping[str, str]]) -> Tensor:
        """Return ``(1, length)`` token ids of the conversation, ready for the answer."""
        if self._tokenizer.chat_template:
            text = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages], add_generation_prompt=True, tokenize=False
            )
            encoded = self._tokenizer(text, add_special_tokens=False, return_tensors="pt")
        else:
            text = "\n".join(message["content"] for message in messages)
            encoded = self._tokenizer(text, return_tensors="pt")
        input_ids: Tensor = encoded["input_ids"]
        return input_ids.to(self._device)

    def _ends(self) -> list[int]:
        """Return the tokens that end an answer."""
        ends: Any = self._model.generation_config.eos_token_id
        ends = self._tokenizer.eos_token_id if ends is None else ends
        return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)

    def _text(self, row: list[int], ends: Sequence[int]) -> str:
        length = next((place for place, token in enumerate(row) if token in ends), len(row))
        return str(self._tokenizer.decode(row[:length], skip_special_tokens=True)).strip()

    def _autocast(self) -> torch.autocast:
        """Compute in the base's type inside the block, with the float32 factors too."""
        enabled = self._dtype != torch.float32
        return torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=enabled)


def _require_answering(state: AdapterState) -> None:
    if state.spec.heads:
        raise AdapterError(
            f"An adapter with a head ({state.spec.heads[0].name}) tells labels apart; it does not "
            "answer. Load it with PEFT, as its card says."
        )
