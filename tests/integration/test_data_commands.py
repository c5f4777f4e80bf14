"""``fedlora data check``: what training would make of data, on the command line."""

import json
from pathlib import Path

import pytest

PRIVATE = "Ms Miller"


def _written(path: Path, rows: list[object]) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def _chat(question: str, answer: str = "A fig.") -> dict[str, object]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns}


def test_good_data_is_described(command_line, tmp_path):
    """Format, rows, lengths, copies, what is learned, and one row with its answer in brackets."""
    path = _written(tmp_path / "a.jsonl", [_chat("one"), _chat("two"), _chat("one")])
    code, out, _ = command_line("data", "check", path)
    assert code == 0
    words = " ".join(out.split())
    assert f"{path}: messages" in words.replace("\n", " ")
    assert "3 kept, 0 refused, 0 too long" in words
    assert "copies 1 row" in words
    assert "learned" in words
    assert "⟦A fig.<|end|>⟧" in out
    assert "<|user|>\none<|end|>" in out
    assert "Training can use this." in out


def test_labels_are_counted(command_line, tmp_path):
    """In place of learned tokens, of which classification has none."""
    rows = [{"text": f"number {i}", "label": "odd" if i % 2 else "even"} for i in range(5)]
    keys = "objective=classification", "labels=[even, odd]"
    path = _written(tmp_path / "a.jsonl", rows)
    code, out, _ = command_line("data", "check", path, *keys)
    words = " ".join(out.split())
    assert code == 0
    assert "labels even 3, odd 2" in words
    assert "learned is its label, even: number 0" in words
    rows[2]["label"] = PRIVATE
    code, out, _ = command_line("data", "check", _written(tmp_path / "b.jsonl", rows), *keys)
    assert code == 1
    assert "line 3: the label is none of the recipe's labels: even, odd" in " ".join(out.split())
    assert PRIVATE not in out


def test_data_of_another_objective_is_told_without_counts(command_line, tmp_path):
    """It has no format that can be learned from: nothing was kept or refused."""
    path = _written(tmp_path / "a.jsonl", [{"text": "one", "label": "odd"}])
    code, out, _ = command_line("data", "check", path, "--type", "text-label")
    assert code == 1
    assert "kept" not in out
    assert "objective" in out


def test_every_problem_is_told_with_its_lines_and_without_its_text(command_line, tmp_path):
    """Like reasons together; the exit code says that training would go wrong."""
    bad = {"messages": [{"role": "tool", "content": PRIVATE}]}
    rows = [_chat("one"), bad, "{" + PRIVATE, _chat("two"), bad, {"messages": [], "x": PRIVATE}]
    code, out, _ = command_line("data", "check", _written(tmp_path / "a.jsonl", rows))
    words = " ".join(out.split())
    assert code == 1
    assert "2 kept, 4 refused" in words
    assert "line 2, turn 1; line 5, turn 1: the role is tool" in words
    assert "line 3: this is not valid JSON" in words
    assert "line 6: there is no assistant turn" in words
    assert "4 of its rows cannot be learned from" in words
    assert PRIVATE not in out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--sequence-len", "64"], "1 of those kept are longer than sequence_len, 64"),
        (["sequence_len=64", "excess_length_strategy=drop"], "9 kept, 0 refused, 1 too long"),
    ],
)
def test_rows_that_are_too_long_are_counted(command_line, tmp_path, options, says):
    """Cut or left out, as training would; neither is wrong."""
    rows = [*(_chat(f"is it {i}?") for i in range(9)), _chat("word " * 100)]
    path = _written(tmp_path / "a.jsonl", rows)
    code, out, _ = command_line("data", "check", path, "val_set_size=0.5", *options)
    assert code == 0
    assert says in " ".join(out.split())


def test_long_rows_are_wrong_where_training_would_refuse_them(command_line, tmp_path):
    """With ``excess_length_strategy: raise``."""
    path = _written(tmp_path / "a.jsonl", [_chat("one"), _chat("two"), _chat("word " * 600)])
    code, out, _ = command_line("data", "check", path, "excess_length_strategy=raise")
    assert code == 1
    assert "line 3: it is longer than sequence_len, 512" in " ".join(out.split())
    shares = ["excess_length_strategy=drop", "val_set_size=0.9", "sequence_len=32"]
    rows = [_chat("one"), *(_chat(f"{i} word " * 60) for i in range(3))]
    code, out, _ = command_line("data", "check", _written(tmp_path / "b.jsonl", rows), *shares)
    assert code == 1
    assert "are longer than sequence_len, 32" in " ".join(out.split())


def test_held_out_rows_must_not_be_trained_on(command_line, tmp_path):
    """A loss on rows that were trained on says nothing."""
    train = _written(tmp_path / "a.jsonl", [_chat("one"), _chat("two")])
    held_out = _written(tmp_path / "b.jsonl", [_chat("three"), _chat("two")])
    code, out, _ = command_line("data", "check", train, "--held-out", held_out)
    words = "".join(out.split())
    assert code == 1
    assert "1ofitsrowsaretrainedon" in words
    assert "b.jsonl,line2" in words
    other = _written(tmp_path / "c.jsonl", [_chat("three")])
    assert command_line("data", "check", train, "--held-out", other)[0] == 0


@pytest.mark.parametrize(
    ("rows", "options", "says"),
    [
        ([{"text": "a", "label": 1}], [], "objective: sft learns from"),
        ([_chat("one")], [], "it has 1 different rows, but needs at least 2"),
        ([_chat("one")], ["--type", "alpaca"], "no row of it can be learned from"),
        ([], [], "no such file or folder"),
    ],
)
def test_data_that_cannot_be_used_is_told(command_line, tmp_path, rows, options, says):
    """Another kind of rows, too few, another format, no file."""
    path = tmp_path / "a.jsonl"
    if rows:
        _written(path, rows)
    code, out, _ = command_line("data", "check", path, *options)
    assert code == 1
    assert says in " ".join(out.split())


def test_a_row_cannot_move_the_cursor(command_line, tmp_path):
    """Control characters of a row are shown, not obeyed."""
    rows = [_chat("\x1b[2Jone", "\x1b]0;title\x07A fig."), _chat("two")]
    _, out, _ = command_line("data", "check", _written(tmp_path / "a.jsonl", rows))
    assert "\x1b" not in out
    assert "�[2Jone" in out


def test_a_recipe_is_checked_site_by_site(command_line, recipe_text, tmp_path, sites):
    """All its datasets are read as its objective would."""
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe_text)
    code, out, _ = command_line("data", "check", path)
    assert code == 0
    assert out.count("10 kept") == len(sites)
    few = tmp_path / "few.jsonl"
    few.write_text('{"prompt": "a", "completion": "b"}')
    path.write_text(recipe_text.replace(str(sites["south"]), str(few)))
    code, out, _ = command_line("data", "check", path)
    assert code == 1
    assert "site south: it has 1 different rows" in " ".join(out.split())


def test_what_is_asked_for_must_be_one_thing(command_line, recipe_text, tmp_path):
    """One path or recipe; a recipe has formats and splits of its own."""
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe_text)
    assert "set them in the recipe" in command_line("data", "check", path, "--type", "text")[2]
    assert "2 are given" in command_line("data", "check", "a.jsonl", "b.jsonl")[2]
