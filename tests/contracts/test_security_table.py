"""The threat table of docs/security.md names tests that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
TABLE = TEXT[TEXT.index("| attacker | what they can do") :].split("\n\n")[0].splitlines()[2:]
NAMED = re.compile(r"`(tests/[\w/]+\.py)`: ((?:`test_\w+`(?:, )?)+)")
ROWS = [line.strip("|").split(" | ") for line in TABLE]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[1][:40])
def test_each_threat_names_tests_that_exist(row):
    """A file and functions in it, for every row; a claim without a test is none."""
    assert len(row) == 4
    named = NAMED.findall(row[3])
    assert named
    for file, names in named:
        text = (ROOT / file).read_text(encoding="utf-8")
        for name in re.findall(r"test_\w+", names):
            assert f"\ndef {name}(" in text, f"{file} has no {name}"
    assert NAMED.sub("", row[3]).strip("; ") == ""


def test_other_tests_that_the_text_names_exist():
    """Files, wherever they are named."""
    for file in re.findall(r"`(tests/[\w/]+\.py)`", TEXT):
        assert (ROOT / file).is_file(), file
