"""Datasets are read into typed examples, or refused with place and remedy but no private value."""

import json
from pathlib import Path

import pytest

from fedlora.data.examples import Example, Turn
from fedlora.data.formats import Rows, read_dataset
from fedlora.errors import DataError
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


def _read(path: Path, **options: object) -> Rows:
    return read_dataset(Dataset.model_validate({"path": str(path), **options}))


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
    ],
)
@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_the_format_is_detected_from_the_keys(
    tmp_path: Path, row: object, row_type: str, turns: tuple[Turn, ...], suffix: str
) -> None:
    """Each of the four formats is recognised in JSON and JSON lines and read into its turns."""
    text = json.dumps(row) + "\n\n" if suffix == "jsonl" else json.dumps([row], indent=2)
    path = _written(tmp_path, f"rows.{suffix}", text)
    assert _read(path) == Rows(row_type, (Example(turns),), str(path))


def test_a_named_format_wins_over_detection(tmp_path: Path) -> None:
    """With ``type: text`` the text column of an alpaca set is read."""
    row = {"instruction": "a", "output": "b", "text": "c"}
    rows = _read(_written(tmp_path, "rows.jsonl", json.dumps(row)), type="text")
    assert (rows.type, rows.examples) == ("text", (Example((Turn("text", "c"),)),))


def test_csv_rows_span_lines_and_a_byte_order_mark_is_no_key(tmp_path: Path) -> None:
    """Quoted cells keep commas and line ends; spaces around column names do not matter."""
    path = _written(tmp_path, "rows.csv", '\ufeffprompt, completion\r\na,"b, c\nd"\r\n\r\nx,y\r\n')
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


def test_an_unknown_format_lists_its_keys_and_the_four_shapes(tmp_path: Path) -> None:
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
