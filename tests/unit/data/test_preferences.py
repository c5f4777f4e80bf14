"""Two answers to one prompt: the same prompt on both sides, and the answers learned, no more."""

import copy

import pytest

from fedlora.data.examples import Preference, Turn
from fedlora.data.preferences import collate_pairs, tokenize_pair
from fedlora.errors import DataError
from tests.unit.data.test_tokens import CHATML, NO_SYSTEM

PROMPT = (
    Turn("system", "Be brief."),
    Turn("user", "How are you?"),
    Turn("assistant", "Fine, naïve ☂."),
    Turn("user", "And now?"),
)
PAIR = Preference(
    PROMPT,
    chosen=Turn("assistant", "Better."),
    rejected=Turn("assistant", "Better, but it is a long story."),
    where="notes.jsonl, line 3",
)


@pytest.fixture(params=["with markers", "without markers", "without a template"])
def reader(request, tokenizer):
    """Return a tokenizer whose template marks answers, does not, or is not there."""
    changed = copy.deepcopy(tokenizer)
    templates = {"without markers": CHATML, "without a template": None}
    changed.chat_template = templates.get(request.param, tokenizer.chat_template)
    return changed


def learned(side, tokenizer):
    return [t for t, mark in zip(side.input_ids, side.supervised, strict=True) if mark]


def prompt(side):
    return side.input_ids[: side.supervised.index(True)]


def test_the_answers_and_their_end_are_learned_and_no_turn_before_them(reader):
    """An assistant's turn in the prompt is the same on both sides: it prefers nothing."""
    pair = tokenize_pair(PAIR, reader, sequence_len=512)
    for side, answer in ((pair.chosen, PAIR.chosen), (pair.rejected, PAIR.rejected)):
        text = reader.decode(learned(side, reader))
        assert text.startswith(answer.content)
        assert text.removeprefix(answer.content) in {"<|end|>", "<|im_end|>"}
    assert prompt(pair.chosen) == prompt(pair.rejected)
    assert "Fine" in reader.decode(prompt(pair.chosen))


@pytest.mark.parametrize("length", [14, 20, 28, 40])
def test_both_sides_lose_the_same_tokens_of_the_prompt(reader, length):
    """As many as the longer side needs; a side that would have fitted loses them too."""
    whole = tokenize_pair(PAIR, reader, sequence_len=512)
    cut = tokenize_pair(PAIR, reader, sequence_len=length)
    assert cut.length == length < whole.length
    assert prompt(cut.chosen) == prompt(cut.rejected)
    lost = whole.length - length
    assert (whole.excess, cut.excess) == (0, lost)
    for before, after in ((whole.chosen, cut.chosen), (whole.rejected, cut.rejected)):
        if lost < len(prompt(before)):
            assert after.input_ids == before.input_ids[lost:]
            assert learned(after, reader) == learned(before, reader)


def test_the_token_that_begins_a_sequence_survives_cutting(tokenizer):
    """The prompt is cut after it, on both sides."""
    begins = copy.deepcopy(tokenizer)
    begins.chat_template = begins.pad_token + CHATML
    begins.bos_token = begins.pad_token
    whole = tokenize_pair(PAIR, begins, sequence_len=512)
    cut = tokenize_pair(PAIR, begins, sequence_len=whole.length - 5)
    for before, after in ((whole.chosen, cut.chosen), (whole.rejected, cut.rejected)):
        assert after.input_ids == (begins.bos_token_id, *before.input_ids[6:])


def test_an_answer_that_cannot_fit_loses_its_end(reader):
    """The last token of the prompt stays, from which the first of the answer is learned."""
    long = Preference(PROMPT, Turn("assistant", "word " * 60), Turn("assistant", "No."))
    whole = tokenize_pair(long, reader, sequence_len=512)
    cut = tokenize_pair(long, reader, sequence_len=16)
    last = len(prompt(whole.chosen)) - 1
    assert cut.chosen.input_ids == whole.chosen.input_ids[last : last + 16]
    assert cut.rejected.input_ids == whole.rejected.input_ids[last:]
    assert cut.chosen.supervised == (False,) + (True,) * 15


def test_a_side_that_is_refused_is_named_by_its_row(tokenizer):
    """The template's refusal is that of the row; no text is shown."""
    strict = copy.deepcopy(tokenizer)
    strict.chat_template = NO_SYSTEM
    with pytest.raises(DataError, match=r"notes.jsonl, line 3: .*refuses turns") as caught:
        tokenize_pair(PAIR, strict, sequence_len=64)
    assert "Better" not in str(caught.value)


def test_pairs_lie_side_by_side(tokenizer):
    """Rows 2i and 2i + 1 are a pair's, and a pair's own length says how it is padded."""
    other = Preference(PROMPT[:2], PAIR.rejected, PAIR.chosen)
    pairs = [tokenize_pair(row, tokenizer, sequence_len=512) for row in (PAIR, other)]
    batch = collate_pairs(pairs, pad_token_id=0, length=64)
    sides = [side for pair in pairs for side in (pair.chosen, pair.rejected)]
    assert batch.input_ids.shape == (4, 64)
    for row, side in enumerate(sides):
        assert batch.input_ids[row, : side.length].tolist() == list(side.input_ids)
        assert batch.attention_mask[row].sum() == side.length
        assert (batch.labels[row] != -100).sum() == sum(side.supervised)
    assert batch.tokens == sum(sum(side.supervised) for side in sides)
    assert pairs[0].length == max(sides[0].length, sides[1].length)
    assert pairs[0].ids == (sides[0].input_ids, sides[1].input_ids) != pairs[1].ids
    assert collate_pairs(pairs, pad_token_id=0).input_ids.shape[1] == pairs[0].length
