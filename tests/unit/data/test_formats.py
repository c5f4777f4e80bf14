"""Datasets are read into typed examples, or refused with place and remedy but no private value."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedlora.data.examples import Example, Labelled, Preference, Turn
from fedlora.data.formats import Rows, read_dataset
from fedlora.errors import DataError, RowError
from fedlora.sections import STANDARD_LIBRARY, Dataset

PRIVATE = "Ms Miller has diabetes"
CHAT = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "4"},
    ]
}
CHAT_TURNS = (Turn("system", "Be brief."), Turn("user", "2+2?"), Turn("assistant", "4"))
QUESTION, ANSWER = Turn("user", "a"), Turn("assistant", "b")
ASKED = [{"role": "user", "content": "a"}]
ANSWERED = [{"role": "assistant", "content": "b"}]
WORSE = [{"role": "assistant", "content": "c"}]
PAIR = Preference((QUESTION,), ANSWER, Turn("assistant", "c"))


def _read(path: Path, *, objective: str | None = None, **options: object) -> Rows:
    dataset = Dataset.model_validate({"path": str(path), **options})
    return read_dataset(dataset, objective=objective)


def _written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("row", "row_type", "turns"),
    [
        (CHAT, "messages", CHAT_TURNS),
        ({"prompt": "a", "completion": "b"}, "prompt-completion", (QUESTION, ANSWER)),
        ({"instruction": "a", "output": "b"}, "alpaca", (QUESTION, ANSWER)),
        ({"instruction": "a", "input": " ", "output": "b"}, "alpaca", (QUESTION, ANSWER)),
        (
            {"instruction": "a", "input": "c", "output": "b"},
            "alpaca",
            (Turn("user", "a\n\nc"), ANSWER),
        ),
        ({"text": "a\nb"}, "text", (Turn("text", "a\nb"),)),
        ({"instruction": "a", "output": "b", "text": "rendered"}, "alpaca", (QUESTION, ANSWER)),
        (
            {
                "instruction": "a",
                "output": "b",
                "input": None,
                "system": "s",
                "history": [["c", "d"]],
            },
            "alpaca",
            (Turn("system", "s"), Turn("user", "c"), Turn("assistant", "d"), QUESTION, ANSWER),
        ),
        (
            {
                "conversations": [
                    {"from": "human", "value": "a"},
                    {"from": "gpt", "value": "b"},
                ],
                "system": "s",
            },
            "sharegpt",
            (Turn("system", "s"), QUESTION, ANSWER),
        ),
        ({"conversations": ASKED + ANSWERED}, "sharegpt", (QUESTION, ANSWER)),
        ({"prompt": ASKED, "completion": ANSWERED}, "prompt-completion", (QUESTION, ANSWER)),
        (
            {"prompt": [*ASKED, *ANSWERED, *ASKED], "completion": ANSWERED},
            "prompt-completion",
            (QUESTION, Turn("assistant", "b", learned=False), QUESTION, ANSWER),
        ),
        (
            {"messages": [*ASKED, {**ANSWERED[0], "weight": 0}, *ASKED, *ANSWERED]},
            "messages",
            (QUESTION, Turn("assistant", "b", learned=False), QUESTION, ANSWER),
        ),
    ],
)
@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_the_format_is_detected_from_the_keys(
    tmp_path: Path, row: object, row_type: str, turns: tuple[Turn, ...], suffix: str
) -> None:
    """Each format of turns is recognised in JSON and JSON lines and read into its turns."""
    text = json.dumps(row) + "\n\n" if suffix == "jsonl" else json.dumps([row], indent=2)
    path = _written(tmp_path, f"rows.{suffix}", text)
    assert _read(path) == Rows(row_type, (Example(turns),), str(path))


def test_a_named_format_wins_over_detection(tmp_path: Path) -> None:
    """With ``type: text`` the text column of an alpaca set is read."""
    row = {"instruction": "a", "output": "b", "text": "c"}
    rows = _read(_written(tmp_path, "rows.jsonl", json.dumps(row)), type="text")
    assert (rows.type, rows.examples) == ("text", (Example((Turn("text", "c"),)),))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, PAIR),
        ({"prompt": ASKED, "chosen": ANSWERED, "rejected": WORSE}, PAIR),
        ({"chosen": ASKED + ANSWERED, "rejected": ASKED + WORSE}, PAIR),
        ({"prompt": "a", "chosen": ASKED + ANSWERED, "rejected": ASKED + WORSE}, PAIR),
        (
            {"system": "s", "prompt": "a", "chosen": "b", "rejected": "c"},
            Preference((Turn("system", "s"), QUESTION), ANSWER, Turn("assistant", "c")),
        ),
        (
            {"chosen": [*ASKED, *WORSE, *ASKED, *ANSWERED], "rejected": [*ASKED, *WORSE] * 2},
            Preference(
                (QUESTION, Turn("assistant", "c", learned=False), QUESTION),
                ANSWER,
                Turn("assistant", "c"),
            ),
        ),
    ],
)
def test_pairs_of_answers_are_read_as_trl_describes_them(
    tmp_path: Path, row: object, expected: Preference
) -> None:
    """Texts with a prompt, turns with one, or turns whose common beginning is the prompt."""
    rows = _read(_written(tmp_path, "a.jsonl", json.dumps(row)), objective="dpo")
    assert (rows.type, rows.examples) == ("preference", (expected,))


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"chosen": "b", "rejected": "c"}, "the key prompt is missing"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "are the same"),
        ({"prompt": "a", "chosen": "b", "rejected": " "}, "rejected is empty"),
        ({"chosen": ANSWERED, "rejected": WORSE}, "no prompt that the two answer"),
        (
            {"prompt": ASKED + ANSWERED, "chosen": ANSWERED, "rejected": WORSE},
            "no prompt that the two answer",
        ),
        (
            {"chosen": [*ASKED, *ANSWERED], "rejected": [*ASKED, *WORSE, *ASKED, *WORSE]},
            "rejected is not one turn",
        ),
        ({"chosen": ASKED + ASKED, "rejected": ASKED + WORSE}, "chosen is not one turn"),
        ({"chosen": ASKED + ANSWERED, "rejected": PRIVATE}, "rejected is no list of turns"),
    ],
)
def test_pairs_that_prefer_nothing_are_refused(tmp_path: Path, row: object, problem: str) -> None:
    """Without a prompt, a difference, or one answer each there is nothing to prefer."""
    with pytest.raises(RowError, match=problem) as caught:
        _read(_written(tmp_path, "a.jsonl", json.dumps(row)))
    assert PRIVATE not in str(caught.value)


@pytest.mark.parametrize(
    ("label", "expected"), [("good", "good"), (" 1 ", "1"), (0, "0"), (2.0, "2")]
)
def test_labels_are_names_or_numbers(tmp_path: Path, label: object, expected: str) -> None:
    """A whole number becomes its name; white space around a name is no part of it."""
    path = _written(tmp_path, "a.jsonl", json.dumps({"text": "a", "label": label}))
    rows = _read(path, objective="classification")
    assert (rows.type, rows.examples) == ("text-label", (Labelled("a", expected),))


@pytest.mark.parametrize("label", [True, None, 1.5, "", -1, ["a"]])
def test_what_is_no_label_is_refused(tmp_path: Path, label: object) -> None:
    """Truth values, fractions and the Hub's -1 for *none* are no labels."""
    path = _written(tmp_path, "a.jsonl", json.dumps({"text": "a", "label": label}))
    with pytest.raises(RowError, match=r"line 1: label"):
        _read(path)


@pytest.mark.parametrize(
    ("row", "objective", "advice"),
    [
        ({"text": PRIVATE, "label": 1}, "sft", "classification, or datasets[].type: text"),
        ({"prompt": "a", "chosen": PRIVATE, "rejected": "c"}, "sft", "Set objective: dpo;"),
        ({**CHAT, "chosen": ASKED, "rejected": ASKED}, "sft", "or datasets[].type: messages"),
        ({"instruction": PRIVATE, "output": "b"}, "dpo", "learns from preference. Set objective"),
        ({"messages": []}, "classification", "learns from text-label. Set objective: sft"),
    ],
)
def test_rows_that_an_objective_cannot_learn_from_are_refused(
    tmp_path: Path, row: object, objective: str, advice: str
) -> None:
    """File, line, what was found, and what to do; a label or a preference is never ignored."""
    path = _written(tmp_path, "a.jsonl", json.dumps(row))
    with pytest.raises(DataError, match=r"a\.jsonl, line 1: this row has the format") as caught:
        _read(path, objective=objective)
    assert advice in str(caught.value)
    assert PRIVATE not in str(caught.value)


def test_problems_of_all_rows_are_told_where_somebody_listens(tmp_path: Path) -> None:
    """Rows that cannot be read are left out then, each with its place and reason."""
    lines = [json.dumps(CHAT), "{", json.dumps({"messages": []}), '{"text": "x"}', json.dumps(CHAT)]
    path, problems = _written(tmp_path, "a.jsonl", "\n".join(lines)), list[RowError]()
    rows = read_dataset(Dataset(path=str(path)), on_problem=problems.append)
    assert [row.where for row in rows.examples] == [f"{path}, line 1", f"{path}, line 5"]
    assert [problem.where for problem in problems] == [f"{path}, line {n}" for n in (2, 3, 4)]
    assert "not valid JSON" in problems[0].reason
    with pytest.raises(DataError, match="no row of it can be learned from"):
        read_dataset(Dataset(path=str(path), type="alpaca"), on_problem=problems.append)


def test_parquet_gives_the_rows_that_json_lines_would(tmp_path: Path) -> None:
    """Columns of text, of numbers and of lists of turns are read; rows are counted from 1."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist([CHAT, CHAT]), path, row_group_size=1)
    rows = _read(path)
    assert (rows.type, rows.examples) == ("messages", (Example(CHAT_TURNS),) * 2)
    assert rows.examples[1].where == f"{path}, row 2"
    labelled = tmp_path / "b.parquet"
    table = pa.table({"text": pa.array(["a"], pa.large_string()), "label": pa.array([1], "int8")})
    pq.write_table(table, labelled)
    assert _read(labelled).examples == (Labelled("a", "1"),)


def test_two_columns_of_one_name_are_refused_in_parquet_too(tmp_path: Path) -> None:
    """One of them would be lost."""
    path = tmp_path / "a.parquet"
    columns = [pa.array(["a"]), pa.array(["b"])]
    pq.write_table(pa.Table.from_arrays(columns, names=["text", "text"]), path)
    with pytest.raises(DataError, match="two columns have the same name"):
        _read(path)


def test_a_cell_may_be_a_whole_document(tmp_path: Path) -> None:
    """Python's own reader takes more than 131,072 characters for a missing quote."""
    long = "word " * 40_000
    path = _written(tmp_path, "a.csv", f'text\n"{long}"\n')
    [row] = _read(path).examples
    assert row == Example((Turn("text", long),))


def test_csv_rows_span_lines_and_a_byte_order_mark_is_no_key(tmp_path: Path) -> None:
    """Quoted cells keep commas and line ends; spaces before names and quotes do not matter."""
    path = _written(tmp_path, "rows.csv", '\ufeffprompt, completion\r\na, "b, c\nd"\r\n\r\nx,y\r\n')
    rows = _read(path)
    assert [turn.content for row in rows.examples for turn in row.turns] == [
        "a", "b, c\nd", "x", "y",
    ]  # fmt: skip
    assert rows.examples[1].where == f"{path}, line 5"


def test_line_separators_inside_json_strings_do_not_end_a_row(tmp_path: Path) -> None:
    """U+2028 is allowed as it is in JSON strings; only line feeds end rows."""
    rows = _read(_written(tmp_path, "rows.jsonl", '{"text": "a\u2028b"}\r\n{"text": "c"}\r\n'))
    assert [row.turns[0].content for row in rows.examples] == ["a\u2028b", "c"]


def test_text_files_are_cut_into_passages_of_whole_paragraphs(tmp_path: Path) -> None:
    """Paragraphs stay whole, share a passage up to 1,000 characters, and none is lost."""
    paragraphs = ["# Title", "x" * 600, "y" * 600, "z" * 1500, "end"]
    rows = _read(_written(tmp_path, "notes.md", "\n\n \n".join(paragraphs) + "\n"))
    assert [row.turns[0].content for row in rows.examples] == [
        f"# Title\n\n{'x' * 600}", "y" * 600, "z" * 1500, "end",
    ]  # fmt: skip
    assert rows.type == "text"


def test_a_folder_is_read_in_sorted_order_without_hidden_files(tmp_path: Path) -> None:
    """Folders are searched to any depth; hidden files and other suffixes are passed over."""
    for name in ("b.txt", "a/2.TXT", "a/1.md", ".hidden.txt", ".git/x.txt", "c.png"):
        _written(tmp_path / "rows", name, name)
    rows = _read(tmp_path / "rows")
    assert [row.turns[0].content for row in rows.examples] == ["a/1.md", "a/2.TXT", "b.txt"]


@pytest.mark.parametrize(
    ("name", "content", "place", "problem"),
    [
        ("a.jsonl", "", "a.jsonl", "is empty"),
        ("a.csv", "text\n", "a.csv", "no rows"),
        ("a.json", "[]", "a.json", "no rows"),
        ("a.json", '{"text": "x"}', "a.json", "expected a list of rows"),
        ("a.json", '[{"text": "x"},\n{"text" "x"}]', "a.json, line 2", "not valid JSON"),
        ("a.json", '[{"text": "x"}, 3]', "a.json, row 2", "not a number"),
        ("a.jsonl", '{"text": "x"}\n\n{"text": "x"\n', "a.jsonl, line 3", "not valid JSON"),
        ("a.jsonl", '{"text": "x"}\n["x"]', "a.jsonl, line 2", "not a list"),
        ("a.jsonl", "[" * 100_000, "a.jsonl, line 1", "too large"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xff"}', "a.jsonl, line 2", "not UTF-8"),
        ("a.jsonl", '{"text": "\\ud800"}', "a.jsonl, line 1", "surrogate"),
        ("a.jsonl", '{"text": " "}', "a.jsonl, line 1", "text is empty"),
        ("a.jsonl", '{"text": 3}', "a.jsonl, line 1", "text must be a string"),
        ("a.jsonl", '{"prompt": "x", "completion": ""}', "line 1", "completion is empty"),
        ("a.jsonl", '{"instruction": "x", "output": null}', "line 1", "output must be a string"),
        ("a.jsonl", '{"prompt": "x", "completion": "y", "label": false}', "line 1", "good one"),
        ("a.jsonl", '{"instruction": "x", "output": "y", "history": 3}', "line 1", "exchanges"),
        ("a.jsonl", '{"conversations": [], "tools": "[]"}', "line 1", "no assistant turn"),
        ("a.jsonl", '{"text": "x"}\n{"prompt": "x", "completion": "y"}', "line 2", "before it"),
        ("a.csv", "text\na,b\n", "a.csv, line 2", "1 columns"),
        ("a.csv", 'text\n"a" b\n', "a.csv, line 2", "not valid CSV"),
        ("a.csv", "text,text\na,b\n", "a.csv, line 1", "same name"),
        ("a.xlsx", "x", "a.xlsx", ".jsonl, .json, .csv, .parquet, .txt, .md"),
        ("a.parquet", "x", "a.parquet", "cannot be read as Parquet"),
    ],
)
def test_broken_files_are_refused_with_their_place(
    tmp_path: Path, name: str, content: str | bytes, place: str, problem: str
) -> None:
    """The message names file, line or row, and the problem."""
    with pytest.raises(DataError) as caught:
        _read(_written(tmp_path, name, content))
    assert place in str(caught.value)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([{"role": "user", "content": PRIVATE}], "line 1: there is no assistant turn"),
        ([{"role": "user", "content": PRIVATE}, {"role": "assistant", "content": ""}], "turn 2"),
        (
            [{"role": PRIVATE, "content": "x"}],
            "turn 1: the role is none of system, user, human, assistant, gpt",
        ),
        ([{"role": "assistant", "content": [PRIVATE]}], "content must be a string"),
        ([{"role": "assistant", "text": PRIVATE}], "content is missing; there are role, text"),
        ([PRIVATE], "no list of turns"),
        (PRIVATE, "no list of turns"),
        ([], "there is no assistant turn"),
        ([{"role": "user", "content": "x"}, {**ANSWERED[0], "train": False}], "no assistant turn"),
        ([{**ANSWERED[0], "weight": 0.5}], "weight is 0 or 1"),
        ([{"role": "tool", "content": PRIVATE}], "turn 1: the role is tool, but tools are not"),
        ([{"from": "observation", "value": PRIVATE}], "the from is observation, but tools"),
        ([*ASKED, {**ANSWERED[0], "tool_calls": [PRIVATE]}], "turn 2: tool_calls would be lost"),
        ([*ASKED, {**ANSWERED[0], "reasoning_content": PRIVATE}], "reasoning_content would be"),
    ],
)
def test_broken_conversations_are_refused_without_their_content(
    tmp_path: Path, messages: object, problem: str
) -> None:
    """The message says what is wrong in which turn and never quotes the private text."""
    path = _written(tmp_path, "a.jsonl", json.dumps({"messages": messages}))
    with pytest.raises(DataError) as caught:
        _read(path)
    assert problem in str(caught.value)
    assert PRIVATE not in str(caught.value)


def test_an_unknown_format_lists_its_keys_and_the_shapes(tmp_path: Path) -> None:
    """Keys are named unless they look like data, as those of a CSV without a header do."""
    path = _written(tmp_path, "a.csv", f"question,{PRIVATE}\nx,y\n")
    with pytest.raises(DataError) as caught:
        _read(path)
    message = str(caught.value)
    assert "the keys question, 1 not shown" in message
    assert PRIVATE not in message
    assert all(key in message for key in ("messages", "prompt", "completion", "instruction"))


def test_a_row_that_lacks_the_named_format_is_refused(tmp_path: Path) -> None:
    """With a named format, the missing key and the keys that are there are named."""
    path = _written(tmp_path, "a.jsonl", json.dumps(CHAT))
    with pytest.raises(DataError, match="the key prompt is missing; there are messages"):
        _read(path, type="prompt-completion")


def test_missing_paths_and_folders_without_data_are_refused(tmp_path: Path) -> None:
    """A missing file, an empty folder and an unknown package each say what to do."""
    with pytest.raises(DataError, match="no such file or folder"):
        _read(tmp_path / "notes.jsonl")
    with pytest.raises(DataError, match="holds none of the files that can be read"):
        _read(tmp_path)
    with pytest.raises(DataError, match="no documentation of the packages nonesuch"):
        read_dataset(Dataset(path=STANDARD_LIBRARY, packages=("nonesuch",)))


def test_the_standard_library_is_read_as_questions_and_answers() -> None:
    """A call is asked for and its first paragraph answers; unknown packages are passed over."""
    rows = read_dataset(Dataset(path=STANDARD_LIBRARY, packages=("shlex", "bisect", "nonesuch")))
    questions = [example.turns[0].content for example in rows.examples]
    asked, answer = next(e.turns for e in rows.examples if "bisect.insort_right(" in str(e))
    assert rows.type == "messages"
    assert asked.content.startswith("What does this function do?\n\nbisect.insort_right(a, x,")
    assert (asked.role, answer.role) == ("user", "assistant")
    assert answer.content.startswith("Insert item x in list a")
    assert len(set(questions)) == len(questions)
    assert all(3 <= len(row.turns[1].content.split()) <= 60 for row in rows.examples)


def test_data_that_a_site_names_itself_is_not_here():
    """A recipe for a deployment need name no file; played elsewhere, the error says so."""
    with pytest.raises(
        DataError, match=r"site north is named by the site itself.*give the dataset a path"
    ):
        read_dataset(Dataset(site="north"))
    with pytest.raises(ValueError, match="name a path, or the site"):
        Dataset()
