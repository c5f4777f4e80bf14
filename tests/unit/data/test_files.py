"""A dataset's files are those that it names: of a folder, of a split, of a data set on the Hub."""

from pathlib import Path

import pytest
from huggingface_hub import constants

from fedlora.data.files import files_of
from fedlora.errors import DataError
from fedlora.sections import Dataset

COMMIT = "c" * 40


def _folder(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    return folder


def _names(path: Path | str, folder: Path, **keys: str) -> list[str]:
    files = files_of(Dataset.model_validate({"path": str(path), **keys}))
    return [str(file.relative_to(folder)) for file in files]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of ``org/set`` in the Hub's cache, as its client leaves it, without a network."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    cached = tmp_path / "datasets--org--set"
    for branch in ("main", "v1"):
        _folder(cached / "refs", branch)
        (cached / "refs" / branch).write_text(COMMIT)
    snapshot = cached / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    return snapshot


def test_a_folder_is_all_its_files_but_those_that_describe_them(tmp_path: Path) -> None:
    """A data set's card and metadata are no rows; a folder of texts has its README read."""
    folder = _folder(tmp_path / "a", "b.jsonl", "a/c.parquet", "README.md", "dataset_info.json")
    assert _names(folder, folder) == ["a/c.parquet", "b.jsonl"]
    notes = _folder(tmp_path / "b", "README.md", "more.md")
    assert _names(notes, notes) == ["README.md", "more.md"]


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train", ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]),
        ("train_sft", ["data/train_sft-00000-of-00001.parquet"]),
        ("test", ["my-test.jsonl"]),
        ("validation", ["dev/a.jsonl"]),
        ("val", ["dev/a.jsonl"]),
    ],
)
def test_a_split_is_told_from_names_as_the_hub_tells_it(
    tmp_path: Path, split: str, expected: list[str]
) -> None:
    """By the name before the shard's number, or a word of the file's or a folder's name."""
    _folder(
        tmp_path,
        "data/train-00000-of-00002.parquet",
        "data/train-00001-of-00002.parquet",
        "data/train_sft-00000-of-00001.parquet",
        "my-test.jsonl",
        "dev/a.jsonl",
        "contestants.jsonl",
    )
    assert _names(tmp_path, tmp_path, split=split) == expected


def test_files_without_a_split_in_their_names_are_to_train_on(tmp_path: Path) -> None:
    """As on the Hub; a split that is not there is refused, and those that are are named."""
    _folder(tmp_path, "a.jsonl", "b.jsonl")
    assert _names(tmp_path, tmp_path, split="train") == ["a.jsonl", "b.jsonl"]
    with pytest.raises(DataError, match="there is no split test; there is train"):
        _names(tmp_path, tmp_path, split="test")


def test_a_data_set_on_the_hub_is_its_training_split(hub: Path) -> None:
    """Of files that say the same in several formats those in one are taken."""
    _folder(hub, "README.md", "data/train.parquet", "data/test.parquet", "train.csv")
    assert _names("org/set", hub) == ["data/train.parquet"]
    assert _names("org/set", hub, split="test", revision="v1") == ["data/test.parquet"]


def test_a_subset_of_a_data_set_is_named(hub: Path) -> None:
    """Languages or tasks in folders of their own are not mixed unasked."""
    _folder(hub, "de/train.jsonl", "en/train.jsonl", "en/test.jsonl")
    assert _names("org/set", hub, name="en") == ["en/train.jsonl"]
    with pytest.raises(DataError, match=r"several subsets \(de, en\)"):
        _names("org/set", hub)
    with pytest.raises(DataError, match="there is no subset fr; it has de, en"):
        _names("org/set", hub, name="fr")


def test_a_data_set_that_cannot_be_fetched_is_refused(hub: Path) -> None:
    """Offline and not in the cache: the name, the revision and what to do are told."""
    with pytest.raises(DataError, match=r"org/other at revision v2 cannot be fetched.*network"):
        _names("org/other", hub, revision="v2")


@pytest.mark.parametrize("path", ["data/rows.jsonl", "a/b/c", "/nowhere/rows", "./rows"])
def test_a_missing_path_is_not_looked_for_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """What has the suffix of a file, or is no ``org/name``, is a path."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="no such file or folder"):
        _names(path, tmp_path)


def test_a_path_that_the_system_refuses_is_an_error_of_the_data(tmp_path: Path) -> None:
    """Such as one that is longer than any file system takes."""
    with pytest.raises(DataError, match="cannot be read"):
        _names("a" * 5000, tmp_path)


@pytest.mark.parametrize("key", ["name", "revision", "split"])
def test_keys_without_an_effect_are_refused(tmp_path: Path, key: str) -> None:
    """A file has no split, and what lies here no revision or subset."""
    file = _folder(tmp_path, "a.jsonl") / "a.jsonl"
    with pytest.raises(DataError, match=f"{key} is of a"):
        _names(file, tmp_path, **{key: "train"})
