"""Answers of a base model with the adapter that it has at the moment."""

from collections.abc import Mapping, Sequence

import torch
from transformers import GenerationConfig

from fedlora.training.base_model.network import quietly
from fedlora.training.base_model.resident import BaseModel


@torch.no_grad()
def generate(
    base: BaseModel, prompt: str | Sequence[Mapping[str, str]], *, max_new_tokens: int
) -> str:
    """Return the greedy continuation of a conversation, up to the end of the answer.

    Args:
        base: stays in evaluation mode.
        prompt: a question, or messages of ``role`` and ``content``. Where the tokenizer has no chat
            template, the model goes on from the contents, one a line.
        max_new_tokens: the longest answer, in tokens.
    """
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    input_ids = _tokens(base, messages)
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=base.model.generation_config.eos_token_id or base.tokenizer.eos_token_id,
        pad_token_id=base.pad_token_id,
    )
    base.model.eval()
    with base.autocast(), quietly():
        output = base.model.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            generation_config=config,
        )
    answer = output[0, input_ids.shape[1] :]
    return str(base.tokenizer.decode(answer, skip_special_tokens=True)).strip()


def _tokens(base: BaseModel, messages: Sequence[Mapping[str, str]]) -> torch.Tensor:
    """Return ``(1, length)`` token ids of the conversation, ready for the answer."""
    if base.tokenizer.chat_template:
        text = base.tokenizer.apply_chat_template(
            [dict(message) for message in messages], add_generation_prompt=True, tokenize=False
        )
        encoded = base.tokenizer(text, add_special_tokens=False, return_tensors="pt")
    else:
        text = "\n".join(message["content"] for message in messages)
        encoded = base.tokenizer(text, return_tensors="pt")
    input_ids: torch.Tensor = encoded["input_ids"]
    return input_ids.to(base.device)
