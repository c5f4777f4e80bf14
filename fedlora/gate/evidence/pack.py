"""A pack: all that an auditor needs to check a site's evidence offline, as a zip or a folder."""

import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Self

from fedlora import atomic
from fedlora.errors import EnrolmentError, EvidenceError, StorageError
from fedlora.gate.evidence.by_hand import README
from fedlora.gate.evidence.entries import Configured, Decided, Logged, Moved
from fedlora.gate.evidence.log import TEXTS, EvidenceLog
from fedlora.gate.evidence.statements import SignedHead
from fedlora.signing import PublicKey

ENTRIES = "entries.jsonl"
HEAD = "head.json"
GATE_KEY = "keys/gate.pub"
AGGREGATOR_KEY = "keys/aggregator.pub"
PAGE = "evidence.html"

_README = "README.md"
_NAMED = (ENTRIES, HEAD, GATE_KEY, AGGREGATOR_KEY, PAGE, _README)
_TEXT = f"{TEXTS}/[0-9a-f]{{64}}"
_MOST_BYTES = 2**29
_MOST_FILES = 10_000
_DAY_ONE = (1980, 1, 1, 0, 0, 0)
"""The time of all files in a zip: equal packs are equal bytes."""

_UNREADABLE = (
    OSError,
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    ValueError,
    NotImplementedError,  # another compression
    RuntimeError,  # encrypted
)

Page = Callable[[Sequence[Logged]], str]


@dataclass(frozen=True, kw_only=True)
class Pack:
    """The files of a pack, by name."""

    name: str
    """What errors call it, usually its path."""
    files: Mapping[str, bytes]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a zip or a folder. Nothing is unpacked, and no other name than a pack's is read.

        Raises:
            EvidenceError: it is none, is too large, or has a file that no pack has.
        """
        try:
            files = _of_folder(path) if path.is_dir() else _of_zip(path)
        except _UNREADABLE as error:
            raise _no_pack(path, str(error)) from None
        for name in _NAMED:
            if name not in files:
                raise EvidenceError(f"{path}: {name} is missing.")
        return cls(name=str(path), files=files)

    def write(self, path: Path) -> None:
        """Write a zip, or a folder if the name does not end in ``.zip``.

        Raises:
            StorageError: it cannot be written, or there is something already.
        """
        require_new(path)
        if path.suffix == ".zip":
            atomic.write_file(path, _zip(self.files))
            return
        with atomic.new_folder(path) as folder:
            for name, data in self.files.items():
                atomic.write_file(folder / name, data)

    def key(self, name: str) -> PublicKey:
        """Return a public key of the pack.

        Raises:
            EvidenceError: it is none.
        """
        try:
            return PublicKey.of(self.files[name].decode("ascii"))
        except (UnicodeDecodeError, EnrolmentError) as error:
            raise EvidenceError(f"{self.name}: {name} is no public key ({error}).") from None

    def head(self) -> SignedHead:
        """Return the head that the pack was exported at; the signature is not looked at.

        Raises:
            EvidenceError: there is none.
        """
        try:
            return SignedHead.from_json(self.files[HEAD])
        except ValueError as error:
            raise EvidenceError(f"{self.name}: {HEAD} is no signed head ({error}).") from None


def export(log: EvidenceLog, path: Path, *, aggregator: PublicKey, page: Page) -> SignedHead:
    """Write a pack of the whole log, and log that: all entries are pinned by who keeps the pack.

    Args:
        log: the site's.
        path: a new file that ends in ``.zip``, or a new folder.
        aggregator: whose receipts the log has.
        page: makes a readable page of the entries.

    Raises:
        EvidenceError: the log is not whole, or a text that it names is not there.
        StorageError: the pack cannot be written, or there is something already.
    """
    require_new(path)
    keys = {GATE_KEY: log.gate, AGGREGATOR_KEY: aggregator}

    def files_of(entries: Sequence[Logged]) -> Mapping[str, bytes]:
        files = {name: f"{key.text}\n".encode() for name, key in keys.items()}
        texts = named_texts(entries)
        files |= {f"{TEXTS}/{digest}": log.text(digest).encode() for digest in texts}
        return files | {PAGE: page(entries).encode(), _README: README.encode()}

    files, lines, head = log.pin(path.name, files_of)
    signed = log.sign(head)
    whole = {**files, ENTRIES: lines.encode(), HEAD: signed.to_json()}
    Pack(name=str(path), files=whole).write(path)
    return signed


def require_new(path: Path) -> None:
    """Do nothing if a pack can be written there.

    Raises:
        StorageError: there is something already.
    """
    if path.exists():
        raise StorageError(f"{path}: there is something already. Name a new file or folder.")


def named_texts(entries: Sequence[Logged]) -> list[str]:
    """Return the digests of all recipes and policies that entries name, sorted."""
    digests = set()
    for logged in entries:
        match logged.entry:
            case Moved(recipe=digest):
                digests.add(digest)
            case Configured(policy=digest) | Decided(policy=digest):
                digests.add(digest)
    return sorted(digests)


def _zip(files: Mapping[str, bytes]) -> bytes:
    stream = BytesIO()
    with zipfile.ZipFile(stream, "w", compression=zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            info = zipfile.ZipInfo(name, date_time=_DAY_ONE)
            info.external_attr = 0o644 << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, files[name])
    return stream.getvalue()


def _of_zip(path: Path) -> Mapping[str, bytes]:
    files: dict[str, bytes] = {}
    left = _MOST_BYTES
    with zipfile.ZipFile(path) as archive:
        _require_names(path, archive.namelist())
        for info in archive.infolist():
            with archive.open(info) as file:
                files[info.filename] = file.read(left + 1)  # whatever size the zip says it has
            left -= len(files[info.filename])
            if left < 0:
                raise _too_large(path)
    return files


def _of_folder(path: Path) -> Mapping[str, bytes]:
    found = [each for each in path.rglob("*") if each.is_symlink() or not each.is_dir()]
    _require_names(path, [each.relative_to(path).as_posix() for each in found])
    if any(each.is_symlink() for each in (path / "keys", path / TEXTS, *found)):
        raise _no_pack(path, "there is a link in it")
    if sum(each.stat().st_size for each in found) > _MOST_BYTES:
        raise _too_large(path)
    return {each.relative_to(path).as_posix(): each.read_bytes() for each in found}


def _require_names(path: Path, names: Sequence[str]) -> None:
    if len(names) > _MOST_FILES:
        raise _no_pack(path, f"it has {len(names):,} files; at most {_MOST_FILES:,} are read")
    for name, times in Counter(names).items():
        if name not in _NAMED and not re.fullmatch(_TEXT, name):
            raise EvidenceError(f"{path}: {name!r:.120} is in it, which no pack has.")
        if times > 1:
            raise EvidenceError(f"{path}: {name} is in it {times} times.")


def _no_pack(path: Path, reason: str) -> EvidenceError:
    return EvidenceError(f"{path}: this is no pack of evidence, or it is damaged: {reason}.")


def _too_large(path: Path) -> EvidenceError:
    return _no_pack(path, f"it is larger than {_MOST_BYTES:,} bytes")
