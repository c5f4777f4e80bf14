"""Sites get their own rows and hold some out."""

import json
from itertools import chain
from pathlib import Path

import pytest

import fedlora
from fedlora.data.partition import SiteExamples, site_examples
from fedlora.errors import DataError, RowError
from fedlora.recipe import Recipe, read_recipe

DEMO = Path(fedlora.__file__).parent / "demo.yaml"


def _recipe(*files: tuple[Path, str | None], **options: object) -> Recipe:
    datasets = [{"path": str(path), **({"site": site} if site else {})} for path, site in files]
    return Recipe.model_validate({"datasets": datasets, "privacy": {"unit": "none"}, **options})


PRIVATE = {
    "privacy": {"unit": "example", "epsilon": 8, "delta": 1e-5, "records": 100},
    "federation": {"evaluate_every": 0, "sites": 3},
}


def _texts(folder: Path, name: str, rows: list[str]) -> Path:
    path = folder / name
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return path


def _contents(examples: SiteExamples) -> list[str]:
    return [row.turns[0].content for row in (*examples.train, *examples.held_out)]


def test_labelled_sites_have_their_own_rows_of_all_their_datasets(tmp_path: Path) -> None:
    """A site has what is labelled with its name, of whatever formats, and nothing else."""
    notes = _texts(tmp_path, "a.jsonl", ["a1", "a2"])
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("prompt,completion\na3,x\n")
    other = _texts(tmp_path, "b.jsonl", ["b1", "b2"])
    spec = _recipe((notes, "a"), (other, "b"), (pairs, "a"))
    assert sorted(_contents(site_examples(spec, "a"))) == ["a1", "a2", "a3"]
    assert sorted(_contents(site_examples(spec, "b"))) == ["b1", "b2"]
    found = site_examples(spec, "a")
    assert found.types == ("text", "prompt-completion")
    assert [source.path for source in found.sources] == [
        str(notes) if row.turns[0].role == "text" else str(pairs) for row in found.train
    ]


def test_unlabelled_rows_are_dealt_out_equally(tmp_path: Path) -> None:
    """Every row goes to exactly one site, in shares that differ by one, shuffled by the seed."""
    rows = [f"row {i}" for i in range(30)]
    files = [(_texts(tmp_path, "a.jsonl", rows[:20]), None),
             (_texts(tmp_path, "b.jsonl", rows[20:]), None)]  # fmt: skip
    first = _recipe(*files)
    dealt = [_contents(site_examples(first, site)) for site in first.site_names]
    assert sorted(chain(*dealt)) == sorted(rows)
    assert sorted(map(len, dealt)) == [7, 7, 8, 8]
    assert sorted(dealt[0]) != sorted(rows[::4])
    again = _recipe(*files, seed=1)
    assert sorted(_contents(site_examples(again, "site-1"))) != sorted(dealt[0])


def test_the_held_out_part_is_the_share_asked_for_and_depends_on_the_seed(tmp_path: Path) -> None:
    """The same seed and site hold out the same rows; another seed or name holds out others."""
    path = _texts(tmp_path, "a.jsonl", [f"row {i}" for i in range(100)])
    spec = _recipe((path, "a"), (path, "b"), val_set_size=0.2)
    examples = site_examples(spec, "a")
    assert (len(examples.train), len(examples.held_out)) == (80, 20)
    assert site_examples(spec, "a") == examples
    assert site_examples(spec, "b").held_out != examples.held_out
    other = _recipe((path, "a"), (path, "b"), val_set_size=0.2, seed=1)
    assert site_examples(other, "a").held_out != examples.held_out


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_both_parts_hold_a_row_whatever_the_share(tmp_path: Path, share: float) -> None:
    """Two different rows are enough: one is trained on, one is held out."""
    examples = site_examples(
        _recipe((_texts(tmp_path, "a.jsonl", ["x", "y"]), "a"), val_set_size=share), "a"
    )
    assert (len(examples.train), len(examples.held_out)) == (1, 1)


def test_copies_of_a_row_never_stand_on_both_sides(tmp_path: Path) -> None:
    """Rows that occur once are held out first; copies stay in the training part."""
    path = _texts(tmp_path, "a.jsonl", ["copy"] * 50 + [f"row {i}" for i in range(9)])
    for seed in range(20):
        examples = site_examples(_recipe((path, "a"), seed=seed, val_set_size=0.5), "a")
        assert not set(examples.train) & set(examples.held_out)
        assert [row.turns[0].content for row in examples.train].count("copy") == 50
        assert len(examples.held_out) == 5


def test_a_site_of_copies_alone_still_leaks_nothing(tmp_path: Path) -> None:
    """When every row has copies, those of a held-out row are left out of training."""
    path = _texts(tmp_path, "a.jsonl", ["x", "x", "y", "y", "y"])
    examples = site_examples(_recipe((path, "a")), "a")
    assert _contents(examples) == ["y", "y", "y", "x"]


@pytest.mark.parametrize("rows", [["x"], ["x", "x"]])
def test_a_site_without_two_different_rows_is_refused(tmp_path: Path, rows: list[str]) -> None:
    """One row, or copies of one, cannot be both trained on and held out."""
    with pytest.raises(DataError, match="site a: it has 1 different rows"):
        site_examples(_recipe((_texts(tmp_path, "a.jsonl", rows), "a")), "a")


def test_more_sites_than_rows_and_unknown_sites_are_refused(tmp_path: Path) -> None:
    """A site that gets no row is named, and so is one that the recipe does not have."""
    spec = _recipe((_texts(tmp_path, "a.jsonl", ["x", "y"]), None))
    with pytest.raises(DataError, match="site site-4: it has 0 different rows"):
        site_examples(spec, "site-4")
    with pytest.raises(DataError, match="site moon: the recipe has no such site, only site-1"):
        site_examples(spec, "moon")


def test_a_relative_path_follows_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data read in one working folder is not taken for that of another."""
    seen = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        _texts(folder, "a.jsonl", [f"{name} x", f"{name} y"])
        monkeypatch.chdir(folder)
        seen.append(sorted(_contents(site_examples(_recipe((Path("a.jsonl"), "a")), "a"))))
    assert seen == [["one x", "one y"], ["two x", "two y"]]


def test_the_demo_has_four_sites_of_enough_rows_that_share_none() -> None:
    """Each site has 600 to 1,000 rows; ``gui`` keeps over 150 where tkinter is not installed."""
    demo = read_recipe(DEMO)
    sites = [set(_contents(site_examples(demo, site))) for site in demo.site_names]
    assert demo.site_names == ("gui", "net", "build", "data")
    assert all(600 <= len(rows) <= 1000 for rows in sites[1:])
    assert 150 < len(sites[0]) <= 1000
    assert len(set().union(*sites)) == sum(map(len, sites))


@pytest.mark.parametrize("labelled", [True, False])
def test_under_privacy_a_row_moves_no_other(tmp_path: Path, labelled: bool) -> None:
    """Without any one row, every other has the same site and is on the same side."""
    rows = [f"row {i}" for i in range(40)]

    def places(rows: list[str]) -> dict[str, tuple[str, bool]]:
        path = _texts(tmp_path, f"{len(list(tmp_path.iterdir()))}.jsonl", rows)
        sites = ("a", "b", "c") if labelled else ()
        files = [(path, site) for site in sites] or [(path, None)]
        spec, found = _recipe(*files, **PRIVATE), {}
        for site in spec.site_names:
            parts = site_examples(spec, site)
            for part, side in ((parts.train, False), (parts.held_out, True)):
                names = [example.turns[0].content for example in part]
                found |= {f"{site if labelled else ''}{name}": (site, side) for name in names}
        return found

    whole = places(rows)
    assert len({side for _, side in whole.values()}) == 2
    for left_out in (0, 7, 39):
        fewer = places(rows[:left_out] + rows[left_out + 1 :])
        assert len(fewer) == len(whole) - (3 if labelled else 1)
        assert fewer.items() <= whole.items()


def test_under_privacy_a_broken_row_is_left_out_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A run that it ended would tell of it; the site's own log has its place."""
    whole = _texts(tmp_path, "whole.jsonl", [f"row {i}" for i in range(40)])
    broken = tmp_path / "broken.jsonl"
    broken.write_text(whole.read_text() + '{"text": 7}\n', "utf-8")
    spec = _recipe((broken, "a"), **PRIVATE | {"federation": {"evaluate_every": 0}})

    assert (
        site_examples(spec, "a").train
        == site_examples(
            _recipe((whole, "a"), **PRIVATE | {"federation": {"evaluate_every": 0}}), "a"
        ).train
    )
    assert "broken.jsonl, line 41" in caplog.text
    with pytest.raises(RowError):
        site_examples(_recipe((broken, "a")), "a")


def test_under_privacy_shares_are_met_on_average(tmp_path: Path) -> None:
    """By the content of each row and the seed: another seed holds out others."""
    path = _texts(tmp_path, "a.jsonl", [f"row {i}" for i in range(2000)])
    options = {**PRIVATE, "val_set_size": 0.2, "federation": {"evaluate_every": 0, "sites": 2}}
    spec = _recipe((path, None), **options)
    sites = [site_examples(spec, site) for site in spec.site_names]
    sizes = [len(part) for site in sites for part in (site.train, site.held_out)]
    assert sum(sizes) == 2000
    assert sizes == pytest.approx([800, 200, 800, 200], rel=0.15)
    other = _recipe((path, None), **options, seed=1)
    assert set(site_examples(other, "site-1").held_out) != set(sites[0].held_out)


def test_an_objective_gets_no_rows_of_another_kind(tmp_path: Path) -> None:
    """Text with labels is refused under ``sft``: nothing that was labelled is learned as text."""
    path = tmp_path / "a.csv"
    path.write_text("text,label\nx,1\ny,0\n")
    with pytest.raises(DataError, match="has the format text-label, but objective: sft"):
        site_examples(_recipe((path, "a")), "a")
