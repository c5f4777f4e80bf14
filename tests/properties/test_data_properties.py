"""What holds of tokens and batches for any input."""

import copy

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from fedlora.data.batches import collate, mixture, rows_of_step
from fedlora.data.examples import Example, Turn
from fedlora.data.tokens import TokenizedExample, tokenize
from tests.chat_templates import FAMILIES, Family

TEXT = st.text(st.characters(codec="utf-8"), max_size=40)
ANSWER = TEXT.filter(str.strip)
EXCHANGE = st.tuples(
    TEXT.map(lambda t: Turn("user", t)), ANSWER.map(lambda t: Turn("assistant", t))
)
CHATS = st.lists(EXCHANGE, min_size=1, max_size=3).map(lambda pairs: Example(sum(pairs, ())))
READ = st.tuples(TEXT.map(lambda t: Turn("user", t)), ANSWER, st.booleans()).map(
    lambda said: (said[0], Turn("assistant", said[1], learned=said[2]))
)
"""An exchange whose answer may be one that is not learned."""
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


@pytest.fixture(scope="session", params=FAMILIES)
def family(
    request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerBase
) -> tuple[Family, PreTrainedTokenizerBase]:
    """A family of chat templates, with a tokenizer of it."""
    chosen = FAMILIES[request.param]
    return chosen, chosen.tokenizer(tokenizer)


@given_fixture
@given(
    system=st.none() | TEXT,
    exchanges=st.lists(READ, min_size=1, max_size=3),
    last=st.tuples(TEXT, ANSWER),
    room=st.integers(2, 80),
)
def test_answers_and_their_ends_alone_are_learned_whatever_the_template(
    family: tuple[Family, PreTrainedTokenizerBase],
    system: str | None,
    exchanges: list[tuple[Turn, Turn]],
    last: tuple[str, str],
    room: int,
) -> None:
    """The marked tokens are those of learned answers with their ends of turn, and no others.

    What is marked is compared with the family's own rendering, which is written by hand; a sequence
    that is cut is the end of the whole.
    """
    rules, tokenizer = family
    turns = [*sum(exchanges, ()), Turn("user", last[0]), Turn("assistant", last[1])]
    if system is not None and rules.system:
        turns = [Turn("system", system), *turns]
    learned = iter([turn.learned for turn in turns if turn.role == "assistant"])
    text, spans = "", []
    for piece, answer in rules.pieces(turns):
        if answer and next(learned):
            spans.append((len(text), len(text) + len(piece)))
        text += piece
    told = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    marks = [
        any(start < end_of and end > begin for begin, end_of in spans)
        for start, end in told["offset_mapping"]
    ]
    end = max(place for place, mark in enumerate(marks) if mark) + 1
    whole = tokenize(Example(tuple(turns)), tokenizer, sequence_len=10**6, train_on_inputs=False)
    assert whole == TokenizedExample(tuple(told["input_ids"][:end]), tuple(marks[:end]))
    assert whole.excess == 0
    cut = tokenize(Example(tuple(turns)), tokenizer, sequence_len=room, train_on_inputs=False)
    assert (cut.input_ids, cut.supervised) == (
        whole.input_ids[-room:],
        whole.supervised[-room:],
    )
    assert cut.excess == max(0, whole.length - room)


@given(
    counts=st.lists(st.integers(1, 60), min_size=2, max_size=4),
    shares=st.lists(st.integers(1, 9), min_size=4, max_size=4, unique=True),
    batch_size=st.integers(1, 8),
    seed=st.integers(0, 3),
)
def test_a_mixture_has_its_shares(
    counts: list[int], shares: list[int], batch_size: int, seed: int
) -> None:
    """In an epoch each source, and each row, is visited as often as its share says, to within one.

    Rows that are left over at its end may be missing.
    """
    sources = [source for source, count in enumerate(counts) for _ in range(count)]
    weights = mixture(sources, dict(enumerate(map(float, shares))))
    assert sum(weights) == pytest.approx(len(sources))
    steps = range(max(1, len(sources) // batch_size))
    visited = [
        row
        for step in steps
        for row in rows_of_step(
            [1] * len(sources), batch_size=batch_size, seed=str(seed), step=step, weights=weights
        )
    ]
    left_out = max(0, len(sources) - len(visited))
    repeated = max(0, len(visited) - len(sources))  # with fewer rows than a batch
    total = sum(shares[: len(counts)])
    for source, count in enumerate(counts):
        wanted = len(sources) * shares[source] / total
        found = sum(sources[row] == source for row in visited)
        assert wanted - 1 - left_out < found < wanted + 1 + repeated
        for row in (place for place, each in enumerate(sources) if each == source):
            assert visited.count(row) < wanted / count + 1 + repeated


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
