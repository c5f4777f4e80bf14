"""Data as users have it, placed in a folder and named on the command line, without a recipe."""

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from fedlora.runtime.run_folder import RunFolder

_CAPITALS = {
    "Österreich": "Wien",
    "Perú": "Lima",
    "中国": "北京",
    "Éire": "Baile Átha Cliath",
    "Ελλάδα": "Αθήνα",
}
_SHORT = ["federation.rounds=1", "federation.local_steps=4", "simulation.compare=false"]

Row = Mapping[str, object]


def alpaca() -> Iterator[Row]:
    """Instructions as Alpaca has them: with an input or an empty one, short answers and long."""
    for number in range(8):
        for country, capital in _CAPITALS.items():
            yield {
                "instruction": f"Name the capital. ({number})",
                "input": country if number % 2 else "",
                "output": f"The capital of {country} is {capital}. " * (1 if number % 5 else 20),
            }


def messages() -> Iterator[Row]:
    """Conversations of several turns, with a system prompt and fields that nobody asked for."""
    for number in range(8):
        for country, capital in _CAPITALS.items():
            turns = [
                ("system", 'Answer in one sentence, without "quotes".'),
                ("user", f"What is the capital of {country}?\n\nNumber {number}."),
                ("assistant", f"It is {capital}."),
                ("user", "Are you sure?"),
                ("assistant", f"Yes: {capital} \U0001f642"),
            ]
            yield {
                "id": f"{country}-{number}",
                "messages": [{"role": role, "content": text} for role, text in turns],
                "source": "wiki",
            }


def as_jsonl(rows: Sequence[Row], path: Path) -> None:
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")


def as_csv(rows: Sequence[Row], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def as_parquet(rows: Sequence[Row], path: Path) -> None:
    parquet.write_table(pa.Table.from_pylist([dict(row) for row in rows]), path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "write", "name", "detected"),
    [
        (alpaca, as_jsonl, "alpaca.jsonl", "alpaca"),
        (alpaca, as_csv, "alpaca.csv", "alpaca"),
        (messages, as_parquet, "chats.parquet", "messages"),
        (messages, as_jsonl, "chats.jsonl", "messages"),
    ],
    ids=["alpaca.jsonl", "alpaca.csv", "chats.parquet", "chats.jsonl"],
)
def test_instructions_train_as_they_are(
    command_line: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rows: Callable[[], Iterator[Row]],
    write: Callable[[Sequence[Row], Path], None],
    name: str,
    detected: str,
) -> None:
    """The format is detected and shown, every row goes to a site, and what they say is learned."""
    monkeypatch.chdir(tmp_path)
    placed = list(rows())
    write(placed, tmp_path / name)
    code, out, err = command_line("simulate", f"datasets=[{{path: {name}}}]", *_SHORT)
    assert (code, err) == (0, "")
    assert detected in out
    sites = re.findall(rf"^ *site-\d +{detected} +(\d+) +(\d+)", out, re.MULTILINE)
    assert sum(int(train) + int(held_out) for train, held_out in sites) == len(placed)
    [path] = (tmp_path / "runs").glob("demo-*")
    run = RunFolder.open(path)
    assert run.is_published
    before, after = (run.records()[index]["evaluation"] for index in (0, -1))
    assert set(before) == set(after) == set(run.recipe().site_names)
    for site, (loss_sum, tokens) in after.items():
        assert before[site][1] == tokens
        assert loss_sum / tokens < before[site][0] / tokens - 0.5
