"""Chat templates are applied and the right tokens are learned."""

import copy

import pytest
from transformers import PreTrainedTokenizerBase

from fedlora.data.examples import Example, Turn
from fedlora.data.tokens import TokenizedExample, tokenize
from fedlora.errors import DataError

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FORGETFUL = (  # like templates that drop the reasoning of all answers but the last
    "{% for m in messages %}[{{ m['role'] }}]{% if loop.last %} last{% endif %} {{ m['content'] }}"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
NO_SYSTEM = "{{ raise_exception('no system') }}"
DIALOGUE = Example(
    (
        Turn("system", "Be brief."),
        Turn("user", "How are you?"),
        Turn("assistant", "Fine, naïve ☂."),
        Turn("user", "And now?"),
        Turn("assistant", "Better."),
    ),
    where="notes.jsonl, line 3",
)


def _with_template(
    tokenizer: PreTrainedTokenizerBase, template: str | None
) -> PreTrainedTokenizerBase:
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = template
    return changed


def _read(
    example: Example,
    tokenizer: PreTrainedTokenizerBase,
    *,
    sequence_len: int = 512,
    train_on_inputs: bool = False,
) -> TokenizedExample:
    return tokenize(example, tokenizer, sequence_len=sequence_len, train_on_inputs=train_on_inputs)


def _learned(example: TokenizedExample, tokenizer: PreTrainedTokenizerBase) -> str:
    pairs = zip(example.input_ids, example.supervised, strict=True)
    return tokenizer.decode([token for token, mark in pairs if mark])


def test_answers_and_their_end_are_learned_by_generation_markers(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """The embedded template's markers give each answer with its end-of-turn token, no more."""
    tokens = _read(DIALOGUE, tokenizer)
    assert _learned(tokens, tokenizer) == "Fine, naïve ☂.<|end|>Better.<|end|>"
    assert tokenizer.decode(tokens.input_ids) == (
        "<|system|>\nBe brief.<|end|>\n<|user|>\nHow are you?<|end|>\n"
        "<|assistant|>\nFine, naïve ☂.<|end|>\n<|user|>\nAnd now?<|end|>\n"
        "<|assistant|>\nBetter.<|end|>"
    )


def test_answers_and_their_end_are_learned_without_markers(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """A plain ChatML template gives the answers with their end-of-turn token too."""
    chatml = _with_template(tokenizer, CHATML)
    tokens = _read(DIALOGUE, chatml)
    assert _learned(tokens, chatml) == "Fine, naïve ☂.<|im_end|>Better.<|im_end|>"


def test_markers_and_prefixes_agree(tokenizer: PreTrainedTokenizerBase) -> None:
    """The embedded template without its markers gives the same tokens and the same mask."""
    template = tokenizer.get_chat_template()
    bare = template.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    assert bare != template
    assert _read(DIALOGUE, _with_template(tokenizer, bare)) == _read(DIALOGUE, tokenizer)


def test_the_prompt_is_what_the_model_is_asked_with_later(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """What stands before the answer is the template's own generation prompt, token by token."""
    question = Example((Turn("user", "Why?"), Turn("assistant", "So.")))
    tokens = _read(question, tokenizer)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Why?"}], add_generation_prompt=True
    )["input_ids"]
    assert list(tokens.input_ids[: len(prompt)]) == prompt
    assert tokens.supervised == (False,) * len(prompt) + (True,) * (
        len(tokens.input_ids) - len(prompt)
    )


def test_without_a_template_turns_are_lines_and_answers_end_the_sequence(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """The documented plain rendering of a conversation for base models without a template."""
    plain = _with_template(tokenizer, None)
    tokens = _read(DIALOGUE, plain)
    assert tokenizer.decode(tokens.input_ids) == (
        "Be brief.\nHow are you?\nFine, naïve ☂.<|end|>\nAnd now?\nBetter.<|end|>"
    )
    assert _learned(tokens, tokenizer) == "Fine, naïve ☂.<|end|>Better.<|end|>"


def test_plain_text_is_learned_whole_with_its_end(tokenizer: PreTrainedTokenizerBase) -> None:
    """Text takes no template: all its tokens and the end of the sequence are learned."""
    tokens = _read(Example((Turn("text", "Once upon a time."),)), tokenizer)
    assert tokenizer.decode(tokens.input_ids) == "Once upon a time.<|end|>"
    assert all(tokens.supervised)


def test_all_tokens_are_learned_when_inputs_are_trained_on(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """``train_on_inputs`` learns prompts as well."""
    assert all(_read(DIALOGUE, tokenizer, train_on_inputs=True).supervised)


def test_a_long_prompt_gives_way_to_the_answer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Cutting takes the beginning: the whole answer stays when it fits, else its end."""
    long = Example((Turn("user", "word " * 800), Turn("assistant", "The answer is short.")))
    whole = _read(long, tokenizer, sequence_len=10_000)
    cut = _read(long, tokenizer, sequence_len=32)
    assert cut.input_ids == whole.input_ids[-32:]
    assert _learned(cut, tokenizer) == "The answer is short.<|end|>"
    assert len(whole.input_ids) > tokenizer.model_max_length
    tiny = _read(long, tokenizer, sequence_len=2)
    assert tiny.supervised == (True, True)


def test_turns_after_the_last_answer_take_no_room(tokenizer: PreTrainedTokenizerBase) -> None:
    """A question without an answer teaches nothing, so it cannot push the answer out."""
    turns = (Turn("user", "a"), Turn("assistant", "b"))
    asked_on = _read(Example((*turns, Turn("user", "word " * 100))), tokenizer, sequence_len=16)
    assert asked_on == _read(Example(turns), tokenizer)


def test_the_token_that_begins_a_sequence_survives_cutting(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Models trained with a first token rely on it, so the cut is made after it."""
    begins = _with_template(tokenizer, tokenizer.pad_token + CHATML)
    begins.bos_token = tokenizer.pad_token
    whole = _read(DIALOGUE, begins)
    cut = _read(DIALOGUE, begins, sequence_len=12)
    assert cut.input_ids == (begins.bos_token_id, *whole.input_ids[-11:])
    assert cut.supervised == (False, *whole.supervised[-11:])


def test_a_template_that_changes_past_turns_is_refused(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """If prompts are no prefixes, the mask cannot be told; the row and the remedy are named."""
    with pytest.raises(DataError, match=r"notes.jsonl, line 3: .*renders a turn differently"):
        _read(DIALOGUE, _with_template(tokenizer, FORGETFUL))


def test_a_template_that_refuses_the_roles_is_reported_without_content(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """The template's own exception becomes a DataError that names the roles and no text."""
    with pytest.raises(DataError, match="refuses turns in this order: system, user") as caught:
        _read(DIALOGUE, _with_template(tokenizer, NO_SYSTEM))
    assert "Fine" not in str(caught.value)


def test_a_row_without_a_learnable_token_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    """A template that drops the answer leaves nothing to learn."""
    silent = _with_template(
        tokenizer, "{{ messages[0]['content'] }}{% generation %}{% endgeneration %}"
    )
    with pytest.raises(DataError, match="line 3: no token of this row is left to learn"):
        _read(DIALOGUE, silent)
