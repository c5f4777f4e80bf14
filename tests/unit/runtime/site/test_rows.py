"""Rows that are too long are cut, left out or refused, each by itself, and counted."""

import json

import pytest

from fedlora.data.examples import Example, Turn
from fedlora.errors import DataError, RowError
from fedlora.recipe import Recipe
from fedlora.runtime.site.rows import prepare
from fedlora.runtime.site.site import Site


def _row(words: int, where: str) -> Example:
    turns = (Turn("user", "word " * words), Turn("assistant", "A fig."))
    return Example(turns, where=where)


ROWS = [_row(1, "line 1"), _row(500, "line 2"), _row(2, "line 3"), _row(500, "line 4")]


@pytest.mark.parametrize(
    ("strategy", "places", "cut", "dropped"),
    [("truncate", [0, 1, 2, 3], 2, 0), ("drop", [0, 2], 0, 2)],
)
def test_what_becomes_of_long_rows_is_counted(
    small_recipe, tokenizer, strategy, places, cut, dropped
):
    """What is kept fits, keeps its answer, and says which row it was."""
    recipe = small_recipe(f"excess_length_strategy={strategy}")
    found = prepare(ROWS, recipe, tokenizer)
    assert (found.places, found.cut, found.dropped) == (places, cut, dropped)
    assert max(row.length for row in found.rows) <= recipe.sequence_len
    assert len({sum(row.supervised) for row in found.rows}) == 1
    assert [length > recipe.sequence_len for length in found.lengths] == [False, True] * 2


def test_long_rows_can_be_refused(small_recipe, tokenizer):
    """The first ends it all, unless somebody wants to know of each."""
    recipe, problems = small_recipe("excess_length_strategy=raise"), list[RowError]()
    with pytest.raises(RowError, match="line 2: it is longer than sequence_len, 64"):
        prepare(ROWS, recipe, tokenizer)
    found = prepare(ROWS, recipe, tokenizer, on_problem=problems.append)
    assert [problem.where for problem in problems] == ["line 2", "line 4"]
    assert (found.places, found.cut) == ([0, 2], 0)


@pytest.fixture
def uneven(tmp_path) -> str:
    """A recipe of one site with 8 short rows beside 30 long ones, in a file each."""
    parts = {"short": (8, 3), "long": (30, 80)}
    for name, (count, words) in parts.items():
        rows = [{"prompt": f"{name} {i} " * words, "completion": "Yes."} for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return f"""\
sequence_len: 64
micro_batch_size: 4
bf16: false
privacy: {{unit: none}}
federation: {{evaluate_every: 0}}
datasets:
  - {{path: {tmp_path / "short.jsonl"}, site: a, weight: 1}}
  - {{path: {tmp_path / "long.jsonl"}, site: a, weight: 1}}
"""


def test_a_site_says_how_many_rows_are_too_long(uneven, caplog):
    """In its log, or on standard error where it has none; without any of their text."""
    site = Site.open(Recipe.from_yaml(uneven), "a")
    cut = sum(row.excess > 0 for row in site.train_rows)
    said = f"site a: {cut} of {len(site.train_rows)} rows to train on are longer than sequence_len"
    assert said in caplog.text
    assert "and lose tokens" in caplog.text


def test_a_site_whose_rows_are_all_left_out_is_refused(uneven):
    """There is nothing to train on."""
    recipe = Recipe.from_yaml(uneven, overrides=["excess_length_strategy=drop", "sequence_len=8"])
    with pytest.raises(DataError, match="site a: all rows to train on are longer than"):
        Site.open(recipe, "a")


def test_a_mixture_decides_what_a_site_trains_on(uneven):
    """Half the rows of an epoch come from the file that has few; left out rows do not count."""
    site = Site.open(Recipe.from_yaml(uneven), "a")
    short = {i for i, row in enumerate(site.train_rows) if not row.excess}
    steps = len(site.train_rows) // 4
    visited = [row for step in range(steps) for rows in site._step(step) for row in rows]
    assert abs(sum(row in short for row in visited) - len(visited) / 2) <= 2
    assert sum(site.row_weights) == pytest.approx(len(site.train_rows))
    dropping = ["excess_length_strategy=drop", "val_set_size=0.5"]
    dropped = Recipe.from_yaml(uneven, overrides=dropping)
    assert set(Site.open(dropped, "a").row_weights) == {1.0}


def test_an_update_counts_by_the_rows_that_it_was_trained_on(uneven):
    """A step that repeats rows, because the site has few, counts each of them once."""
    path = uneven.split("path: ")[1].split(",")[0]
    data = f"datasets=[{{path: {path}, site: a}}]"
    recipe = Recipe.from_yaml(uneven, overrides=[data, "val_set_size=0.75"])
    site = Site.open(recipe, "a")
    assert len(site.train_rows) == 2
    result = site.train(
        site.base.adapter(), part=site.base.spec, first_step=0, steps=3, total_steps=3
    )
    assert (result.examples, len(result.losses)) == (6, 3)
