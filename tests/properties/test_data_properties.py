"""What holds of tokens and batches for any input."""

import copy

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from fedlora.data.batches import collate, rows_of_step
from fedlora.data.examples import Example, Turn
from fedlora.data.tokens import TokenizedExample, tokenize

TEXT = st.text(st.characters(codec="utf-8"), max_size=40)
ANSWER = TEXT.filter(str.strip)
EXCHANGE = st.tuples(
    TEXT.map(lambda t: Turn("user", t)), ANSWER.map(lambda t: Turn("assistant", t))
)
CHATS = st.lists(EXCHANGE, min_size=1, max_size=3).map(lambda pairs: Example(sum(pairs, ())))
TEXTS = ANSWER.map(lambda text: Example((Turn("text", text),)))

# The fixture is a value that no example changes.
given_fixture = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="session")
def bare_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The embedded tokenizer with a template that has lost its generation markers."""
    bare = copy.deepcopy(tokenizer)
    template = tokenizer.get_chat_template()
    bare.chat_template = template.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    return bare


@given_fixture
@given(example=CHATS | TEXTS, sequence_len=st.integers(2, 64), train_on_inputs=st.booleans())
def test_tokens_fit_and_something_is_learned(
    tokenizer: PreTrainedTokenizerBase,
    example: Example,
    sequence_len: int,
    train_on_inputs: bool,
) -> None:
    """Any example fits any length, ends in a learned end of turn, and is a cut of the whole."""
    whole = tokenize(example, tokenizer, sequence_len=10**6, train_on_inputs=train_on_inputs)
    cut = tokenize(example, tokenizer, sequence_len=sequence_len, train_on_inputs=train_on_inputs)
    assert len(cut.input_ids) == len(cut.supervised) == min(sequence_len, len(whole.input_ids))
    assert cut.input_ids == whole.input_ids[-sequence_len:]
    assert cut.supervised == whole.supervised[-sequence_len:]
    assert any(cut.supervised[1:])
    assert train_on_inputs or cut.input_ids[-1] == tokenizer.eos_token_id


@given_fixture
@given(example=CHATS)
def test_markers_and_prefixes_agree_on_any_conversation(
    tokenizer: PreTrainedTokenizerBase,
    bare_tokenizer: PreTrainedTokenizerBase,
    example: Example,
) -> None:
    """Both ways of finding the answers mark the same tokens, whatever the text."""
    one, two = (
        tokenize(example, each, sequence_len=512, train_on_inputs=False)
        for each in (tokenizer, bare_tokenizer)
    )
    assert one == two


@given(
    lengths=st.lists(st.integers(1, 500), min_size=1, max_size=300),
    batch_size=st.integers(1, 24),
    epoch=st.integers(0, 3),
)
def test_an_epoch_visits_no_row_twice_and_leaves_out_less_than_a_batch(
    lengths: list[int], batch_size: int, epoch: int
) -> None:
    """Batches are full; asked in any order, an epoch's batches share no row while rows suffice."""
    count = max(1, len(lengths) // batch_size)
    steps = range(epoch * count, (epoch + 1) * count)
    batches = [
        rows_of_step(lengths, batch_size=batch_size, seed="s", step=step)
        for step in reversed(steps)
    ]
    assert all(len(batch) == batch_size for batch in batches)
    visited = [row for batch in batches for row in batch]
    assert set(visited) <= set(range(len(lengths)))
    assert len(set(visited)) == min(len(lengths), count * batch_size)
    again = [rows_of_step(lengths, batch_size=batch_size, seed="s", step=step) for step in steps]
    assert again == batches[::-1]


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 2047), st.booleans()), min_size=1, max_size=20),
        min_size=1,
        max_size=6,
    )
)
def test_a_batch_gives_its_examples_back(rows: list[list[tuple[int, bool]]]) -> None:
    """Tokens, lengths and marks of each example can be read from the padded batch."""
    examples = [
        TokenizedExample(tuple(token for token, _ in row), tuple(mark for _, mark in row))
        for row in rows
    ]
    batch = collate(examples, pad_token_id=1)
    for i, example in enumerate(examples):
        length = int(batch.attention_mask[i].sum())
        assert tuple(batch.input_ids[i, :length].tolist()) == example.input_ids
        assert tuple(batch.labels[i, :length].ne(-100).tolist()) == example.supervised
        assert batch.labels[i, length:].eq(-100).all()
