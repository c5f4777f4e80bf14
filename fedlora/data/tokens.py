"""Examples as tokens, with a mask that says which of them are learned."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Protocol

from fedlora.data.examples import Example
from fedlora.errors import RowError

_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")

_Span = tuple[int, int]


class Tokenizer(Protocol):
    """What is used of a Hugging Face tokenizer; it must be a fast one, which knows offsets."""

    @property
    def chat_template(self) -> Any: ...  # noqa: ANN401 - a template or several by name
    @property
    def eos_token(self) -> Any: ...  # noqa: ANN401 - untyped there: text or None
    @property
    def bos_token_id(self) -> Any: ...  # noqa: ANN401 - untyped there: a number or None
    def get_chat_template(self) -> str: ...
    def apply_chat_template(self, conversation: Any, **options: Any) -> Any: ...  # noqa: ANN401 - as there
    def decode(self, token_ids: Any, **options: Any) -> Any: ...  # noqa: ANN401 - as there
    def __call__(self, text: Any, **options: Any) -> Any: ...  # noqa: ANN401 - as there


@dataclass(frozen=True, slots=True)
class TokenizedExample:
    """Tokens of one example.

    Guarantees:
        Both fields have one length, at least 2, and a token after the first is supervised.
    """

    input_ids: tuple[int, ...]
    supervised: tuple[bool, ...]
    """Which tokens are learned. Nothing predicts the first, whatever its mark."""
    excess: int = field(default=0, compare=False)
    """Tokens that were cut off because the example was too long."""

    @property
    def length(self) -> int:
        """What its place among rows of like length goes by: its tokens."""
        return len(self.input_ids)

    @property
    def ids(self) -> tuple[int, ...]:
        """What tells it from other rows."""
        return self.input_ids

    @property
    def sequences(self) -> "tuple[TokenizedExample]":
        """The sequences that it is read as: itself."""
        return (self,)


def tokenize(
    example: Example, tokenizer: Tokenizer, *, sequence_len: int, train_on_inputs: bool
) -> TokenizedExample:
    """Render an example as the base model's chat template wants it and mark what is learned.

    Learned are the assistant turns (``Turn.learned``), each with the token that ends it, or all
    tokens of plain text with the end-of-sequence token after them. Where the assistant turns begin
    and end is known from the template's ``{% generation %}`` markers. Without markers it is found
    by rendering the conversation up to each turn; white space that the template puts after a turn
    is not learned.

    Without a chat template the turns stand one a line, and the end-of-sequence token ends each
    assistant turn.

    What follows the last supervised token teaches nothing and is cut off. An example that is too
    long then loses its beginning, except for the token that begins a sequence.

    Args:
        example: the example.
        tokenizer: the base model's.
        sequence_len: longest result in tokens, at least 2.
        train_on_inputs: learn every token.

    Raises:
        RowError: the chat template refuses the conversation, does not keep what it rendered of
            the turns before, or nothing is left to learn. The message names the row's place.
    """
    if example.turns[0].role != "text" and tokenizer.chat_template:
        ids, supervised = _render_chat(example, tokenizer)
    else:
        text, spans = _join(example, eos=tokenizer.eos_token or "")
        ids, supervised = _mark(tokenizer, text, spans=spans, add_special_tokens=True)
    if train_on_inputs:
        supervised = [True] * len(ids)
    if not any(supervised[1:]):
        raise RowError(
            example.where,
            "no token of this row is left to learn. Write a longer answer, or use a chat template "
            "that keeps the assistant's turns.",
        )
    end = max(index for index, learned in enumerate(supervised) if learned) + 1
    head = 1 if ids[0] == tokenizer.bos_token_id and sequence_len > 2 else 0
    rest = max(head, end - (sequence_len - head))
    return TokenizedExample(
        input_ids=(*ids[:head], *ids[rest:end]),
        supervised=(*supervised[:head], *supervised[rest:end]),
        excess=rest - head,
    )


def marks_answers(tokenizer: Tokenizer) -> bool:
    """Tell whether the chat template says itself, by its markers, where answers begin and end."""
    return bool(tokenizer.chat_template and _MARKER.search(tokenizer.get_chat_template()))


def _join(example: Example, *, eos: str) -> tuple[str, list[_Span]]:
    """Return the turns as plain text with the spans of characters that are learned."""
    text, spans = "", []
    for turn in example.turns:
        text += "\n" if text else ""
        start = len(text)
        text += turn.content
        if turn.role in ("assistant", "text"):
            text += eos
            if turn.learned:
                spans.append((start, len(text)))
    return text, spans


def _render_chat(example: Example, tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
    if not marks_answers(tokenizer):
        text, spans = _find_answers(example, tokenizer)
        return _mark(tokenizer, text, spans=spans, add_special_tokens=False)
    rendered: Mapping[str, Sequence[int]] = _apply_template(
        example,
        tokenizer,
        turns=len(example.turns),
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        tokenizer_kwargs={"verbose": False},  # it would warn of lengths that are cut below
    )
    marks = [bool(mark) for mark in rendered["assistant_masks"]]
    return list(rendered["input_ids"]), _without_read(example, marks)


def _without_read(example: Example, marks: list[bool]) -> list[bool]:
    """Take the marks off the answers that are only read."""
    learned = [turn.learned for turn in example.turns if turn.role == "assistant"]
    if all(learned):
        return marks
    runs = [(marked, len(list(run))) for marked, run in groupby(marks)]
    if sum(marked for marked, _ in runs) != len(learned):
        raise RowError(
            example.where,
            "the base model's chat template marks answers that stand side by side, so those that "
            "are only read cannot be told from those that are learned. Put the user's turns "
            "between them, or split the row.",
        )
    wanted = iter(learned)
    return [mark for marked, length in runs for mark in [marked and next(wanted)] * length]


def _find_answers(example: Example, tokenizer: Tokenizer) -> tuple[str, list[_Span]]:
    def render(turns: int, *, prompt: bool) -> str:
        return str(
            _apply_template(
                example, tokenizer, turns=turns, tokenize=False, add_generation_prompt=prompt
            )
        )

    whole, spans = render(len(example.turns), prompt=False), []
    for index, turn in enumerate(example.turns):
        if turn.role != "assistant" or not turn.learned:
            continue
        before = render(index, prompt=True) if index else ""
        after = render(index + 1, prompt=False)
        if not (whole.startswith(after) and after.startswith(before)):
            raise RowError(
                example.where,
                "the base model's chat template renders a turn differently once others follow, so "
                "the answers cannot be told from the prompts. Split the row into conversations "
                "with one answer each, or add {% generation %} markers to the template.",
            )
        spans.append((len(before), len(after.rstrip())))
    return whole, spans


def _apply_template(example: Example, tokenizer: Tokenizer, *, turns: int, **options: Any) -> Any:  # noqa: ANN401 - text or tokens, by the options
    conversation = [{"role": turn.role, "content": turn.content} for turn in example.turns[:turns]]
    try:
        return tokenizer.apply_chat_template(conversation, **options)
    except Exception as error:  # noqa: BLE001 - a template is a program, it may raise anything
        roles = ", ".join(turn["role"] for turn in conversation)
        raise RowError(
            example.where,
            f"the base model's chat template refuses turns in this order: {roles} "
            f"({type(error).__name__}). Many take no system turn, or want user and assistant in "
            "turn, the user first.",
        ) from None


def _mark(
    tokenizer: Tokenizer, text: str, *, spans: Sequence[_Span], add_special_tokens: bool
) -> tuple[list[int], list[bool]]:
    """Tokenise ``text``; supervised are the tokens that lie, even in part, in a span."""
    encoded: Mapping[str, Any] = tokenizer(
        text,
        add_special_tokens=add_special_tokens,
        return_offsets_mapping=True,
        verbose=False,  # it would warn of lengths that are cut afterwards
    )
    ids: list[int] = list(encoded["input_ids"])
    supervised = [False] * len(ids)
    offsets: list[_Span] = encoded["offset_mapping"]
    for first, last in spans:
        for index, (start, end) in enumerate(offsets):
            if start < last and end > first:
                supervised[index] = True
    return ids, supervised
