"""Chat templates of the families that most fine-tuning begins from, and what each makes of turns.

A template is what a tokenizer carries; beside it stands the same in Python, written by hand, which
says of each piece of text whether it is an answer's. Shortened: no tools, no dates, no reasoning.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from fedlora.data.examples import Turn

Pieces = Iterator[tuple[str, bool]]
"""Text, and whether it belongs to an answer, its end of turn included."""


@dataclass(frozen=True)
class Family:
    """One way to render turns."""

    template: str
    special: tuple[str, ...]
    """Tokens of its own."""
    pieces: Callable[[Iterable[Turn]], Pieces]
    system: bool = True
    """Whether it takes a system turn."""

    def tokenizer(self, like: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
        """Return a copy of a tokenizer with this template and its tokens."""
        changed = copy.deepcopy(like)
        changed.add_tokens(list(self.special), special_tokens=True)
        changed.chat_template = self.template
        return changed


def _chatml(turns: Iterable[Turn]) -> Pieces:
    for turn in turns:
        yield f"<|im_start|>{turn.role}\n", False
        yield f"{turn.content}<|im_end|>", turn.role == "assistant"
        yield "\n", False


def _qwen(turns: Iterable[Turn]) -> Pieces:
    turns = list(turns)
    if turns[0].role != "system":
        yield "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud.<|im_end|>\n", False
    yield from _chatml(turns)


def _llama(turns: Iterable[Turn]) -> Pieces:
    yield "<|begin_of_text|>", False
    for turn in turns:
        yield f"<|start_header_id|>{turn.role}<|end_header_id|>\n\n", False
        yield f"{turn.content.strip()}<|eot_id|>", turn.role == "assistant"


def _mistral(turns: Iterable[Turn]) -> Pieces:
    yield "<s>", False
    for turn in turns:
        if turn.role == "assistant":
            yield f" {turn.content}</s>", True
        else:
            yield f"[INST] {turn.content}[/INST]", False


def _gemma(turns: Iterable[Turn]) -> Pieces:
    yield "<bos>", False
    for turn in turns:
        role = "model" if turn.role == "assistant" else "user"
        yield f"<start_of_turn>{role}\n", False
        yield f"{turn.content.strip()}<end_of_turn>", turn.role == "assistant"
        yield "\n", False


_CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{{ m['content'] + '<|im_end|>' }}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_IM = ("<|im_start|>", "<|im_end|>")

FAMILIES = {
    "chatml": Family(_CHATML, _IM, _chatml),
    "chatml with markers": Family(
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
        "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>' }}"
        "{% endgeneration %}{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        _IM,
        _chatml,
    ),
    "qwen-2.5": Family(
        "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
        "You are Qwen, created by Alibaba Cloud.<|im_end|>\n' }}{% endif %}" + _CHATML,
        _IM,
        _qwen,
    ),
    "llama-3": Family(
        "{{ '<|begin_of_text|>' }}{% for m in messages %}"
        "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' }}"
        "{{ m['content'] | trim + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        _llama,
    ),
    "mistral": Family(
        "{{ '<s>' }}{% for m in messages %}{% if m['role'] == 'user' %}"
        "{{ '[INST] ' + m['content'] + '[/INST]' }}{% elif m['role'] == 'assistant' %}"
        "{{ ' ' + m['content'] + '</s>' }}{% else %}{{ raise_exception('roles') }}{% endif %}"
        "{% endfor %}",
        ("<s>", "</s>", "[INST]", "[/INST]"),
        _mistral,
        system=False,
    ),
    "gemma": Family(
        "{{ '<bos>' }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('system') }}"
        "{% endif %}{% for m in messages %}"
        "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
        "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
        ("<bos>", "<start_of_turn>", "<end_of_turn>"),
        _gemma,
        system=False,
    ),
}
