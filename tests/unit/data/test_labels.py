"""Texts with labels as tokens: what is cut, what is padded, what is refused."""

import pytest
from transformers import AutoTokenizer

from fedlora.data.examples import Labelled
from fedlora.data.labels import TokenizedText, collate_texts, tokenize_text
from fedlora.errors import DataError
from tests.classifiers import LABELS, write_base

TEXT = "please see the agenda now please see the minutes now"
HEAD, END = 2, 3
"""[CLS] and [SEP]."""


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """Return a tokenizer that puts [CLS] before a text and [SEP] behind it."""
    return AutoTokenizer.from_pretrained(write_base(tmp_path_factory.mktemp("base")))


def tokenized(row: Labelled, tokenizer, *, sequence_len: int = 64) -> TokenizedText:
    return tokenize_text(row, tokenizer, labels=LABELS, sequence_len=sequence_len)


def test_a_text_is_as_the_tokenizer_writes_it(encoder):
    """With the tokens that begin and end it, and the place of its label."""
    row = tokenized(Labelled(TEXT, "spam"), encoder)
    assert row.input_ids == tuple(encoder(TEXT)["input_ids"])
    assert (row.input_ids[0], row.input_ids[-1]) == (HEAD, END)
    assert (row.label, row.excess, row.length) == (1, 0, 12)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_text_that_is_too_long_loses_its_end(encoder, side):
    """Whatever the tokenizer's own side; what ends a text stays, and what was cut is counted."""
    encoder.truncation_side = side
    whole = encoder(TEXT)["input_ids"]
    row = tokenized(Labelled(TEXT, "ham"), encoder, sequence_len=8)
    assert row.input_ids == (*whole[:7], END)
    assert row.excess == 4


def test_without_special_tokens_the_beginning_stays(tokenizer):
    """The embedded base's tokenizer writes none."""
    ids = tokenizer(TEXT)["input_ids"]
    assert tokenized(Labelled(TEXT, "ham"), tokenizer, sequence_len=8).input_ids == tuple(ids[:8])


def test_an_unknown_label_is_refused_with_its_place(encoder):
    """The recipe's labels are named; neither the label nor the text is."""
    with pytest.raises(DataError) as caught:
        tokenized(Labelled("a secret text", "secret", where="mail.csv:7"), encoder)
    assert str(caught.value).startswith("mail.csv:7: the label is none of the recipe's labels")
    assert "ham, spam" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_text_without_tokens_is_refused(tokenizer):
    """There is nothing that a class could be read from."""
    with pytest.raises(DataError, match="rows:3: the text has no token"):
        tokenized(Labelled("", "ham", where="rows:3"), tokenizer)


@pytest.mark.parametrize("length", [None, 9])
def test_a_batch_is_padded_on_the_right(length):
    """To the longest or to a length; the mask tells padding from text, even of the same token."""
    rows = [TokenizedText((2, 5, 3), 1, 0), TokenizedText((2, 3, 6, 0, 3), 0, 0)]
    batch = collate_texts(rows, pad_token_id=0, length=length)
    assert batch.input_ids.shape == (2, length or 5)
    for place, row in enumerate(rows):
        assert batch.input_ids[place].tolist()[: row.length] == list(row.input_ids)
        assert not batch.input_ids[place, row.length :].any()
        assert batch.attention_mask[place].sum() == row.length
        assert batch.attention_mask[place, : row.length].all()
    assert batch.labels.tolist() == [1, 0]
    assert batch.tokens == 2


def test_rows_differ_by_text_and_label():
    """The digest of a site's data covers both."""
    one, other = TokenizedText((2, 5, 3), 1, 0), TokenizedText((2, 5, 3), 0, 0)
    assert one.ids != other.ids
