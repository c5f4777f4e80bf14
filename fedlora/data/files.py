"""Which files a dataset is: one, those of a folder or its split, or those of one on the Hub."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from fedlora.data.hub import fetched
from fedlora.data.readers import READERS, unreadable
from fedlora.errors import DataError
from fedlora.sections import Dataset

_SUFFIXES = ", ".join(READERS)
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_TABLES = (".parquet", ".jsonl", ".json", ".csv", ".txt")
"""Suffixes of a Hub data set's files, from the kind that says most of its values to the least."""
_CARD = "readme.md"
_DESCRIPTIONS = frozenset(
    {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "config.json"}
)
"""Files that describe a data set; the Hub passes over them, too."""
_SYNONYMS = {
    "training": "train",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}")


def files_of(dataset: Dataset) -> list[Path]:
    """Return the files of a dataset, in sorted order; what is on the Hub is fetched.

    In a folder hidden files and files with other suffixes are passed over, and so are those that
    describe a data set (``dataset_info.json``; ``README.md`` beside files of rows).

    A split is told from names as the Hub tells it: ``SPLIT-00000-of-00002.parquet``, or ``train``,
    ``validation`` or ``test`` as a word of the file's name or a folder's. Files without any such
    name are ``train``. Of a Hub data set that is the split by default, and of files in several
    formats those in one are taken.

    Raises:
        DataError: nothing is there, or it cannot be fetched or read.
    """
    path = Path(dataset.path).expanduser()
    if not _is_there(path) and _is_hub_id(dataset.path):
        folder = fetched(dataset.path, revision=dataset.revision, suffixes=_TABLES)
        return _hub_files(folder, dataset)
    for key in ("revision", "name"):
        if getattr(dataset, key):
            raise DataError(
                f"{path}: {key} is of a data set on the Hub, but this is a path here: remove it."
            )
    if path.is_dir():
        files = _in_folder(path)
        return _of_split(path, files, dataset.split) if dataset.split else files
    if dataset.split:
        raise DataError(f"{path}: split is of a folder, but this is a file: remove it.")
    return [_file(path)]


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise unreadable(path, error) from None


def _is_hub_id(written: str) -> bool:
    return bool(_HUB_ID.fullmatch(written)) and Path(written).suffix.lower() not in READERS


def _file(path: Path) -> Path:
    if not _is_there(path):
        began = "" if path.is_absolute() else f" It was looked for from {Path.cwd()}."
        raise DataError(
            f"{path}: there is no such file or folder.{began} Correct datasets[].path in the "
            "recipe; at a site, data[].path in its site.yaml."
        )
    if path.suffix.lower() not in READERS:
        raise DataError(f"{path}: this is none of the files that can be read ({_SUFFIXES}).")
    return path


def _in_folder(folder: Path) -> list[Path]:
    try:
        files = sorted(filter(_is_listed, folder.rglob("*")))
    except OSError as error:
        raise unreadable(folder, error) from None
    files = [file for file in files if not _is_hidden(file.relative_to(folder))]
    if any(file.suffix.lower() in _TABLES for file in files):
        files = [file for file in files if file.name.lower() != _CARD]
    if not files:
        raise DataError(
            f"{folder}: the folder holds none of the files that can be read: {_SUFFIXES}."
        )
    return files


def _is_listed(file: Path) -> bool:
    return file.suffix.lower() in READERS and file.name not in _DESCRIPTIONS and file.is_file()


def _is_hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)


def _hub_files(folder: Path, dataset: Dataset) -> list[Path]:
    source = f"{dataset.path} on the Hub"
    files = [file for file in _in_folder(folder) if file.suffix.lower() in _TABLES]
    if dataset.name:
        subset = [f for f in files if dataset.name in f.relative_to(folder).parent.parts]
        files = subset or _refuse_name(source, dataset.name, _subsets(folder, files))
    files = _of_split(folder, files, dataset.split or "train", source=source)
    subsets = _subsets(folder, files)
    if len(subsets) > 1:
        named = [subset or "none" for subset in subsets]
        raise DataError(
            f"{source}: it has several subsets ({', '.join(named)}). Choose one with name: "
            f"{subsets[-1]}."
        )
    suffix = min((file.suffix.lower() for file in files), key=_TABLES.index)
    return [file for file in files if file.suffix.lower() == suffix]


def _refuse_name(source: str, name: str, subsets: Sequence[str]) -> list[Path]:
    there = f"has {', '.join(filter(None, subsets))}" if any(subsets) else "has no subsets"
    raise DataError(f"{source}: there is no subset {name}; it {there}. Correct or remove name.")


def _subsets(folder: Path, files: Iterable[Path]) -> list[str]:
    """Return the folders that files stand in, but for ``data`` and those named as a split."""
    found = (
        "/".join(p for p in f.relative_to(folder).parent.parts if p != "data" and not _word(p))
        for f in files
    )
    return sorted(set(found))


def _of_split(
    folder: Path, files: Sequence[Path], wanted: str, *, source: str | None = None
) -> list[Path]:
    named = {file: _split(file.relative_to(folder)) for file in files}
    unnamed = "" if any(named.values()) else "train"
    splits = {file: split or unnamed for file, split in named.items()}
    chosen = [file for file, split in splits.items() if split == _SYNONYMS.get(wanted, wanted)]
    if not chosen:
        there = ", ".join(sorted(set(splits.values()) - {""}))
        raise DataError(f"{source or folder}: there is no split {wanted}; there is {there}.")
    return chosen


def _split(relative: Path) -> str:
    """Return the split that a file's name, or else a folder's, tells; nothing if none does."""
    if shard := _SHARD.fullmatch(relative.stem):
        return _SYNONYMS.get(shard[1], shard[1])
    names = (relative.stem, *relative.parent.parts)
    return next(filter(None, map(_word, names)), "")


def _word(name: str) -> str:
    words = re.split(r"[-._ 0-9]+", name.lower())
    splits = {"train", "validation", "test"}
    return next((s for word in words if (s := _SYNONYMS.get(word, word)) in splits), "")
