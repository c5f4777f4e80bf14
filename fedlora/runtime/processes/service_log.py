"""What a service says: kept in files that stay small, and passed on if it is bad."""

import asyncio
import os
import re
import subprocess
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

_LARGEST = 5 << 20
"""Bytes of a file; then it is set aside."""
_OLDER = 3
"""Files set aside that are kept."""
_LONGEST_LINE = 8192
_CHUNK = 1 << 16
_LEFT = 32
"""Chunks that are read after the end: a pipe holds one, or what it was told to hold."""
_LAST_WORDS = 30
_COLOUR = re.compile(rb"\x1b\[[0-9;]*m")
_ALARM = re.compile(
    r"""^(WARN|WARNING|ERROR|CRITICAL|FATAL)\b|^Traceback|^[\w.]+(Error|Exception)\b"""
    r"""|"level": "(warning|error|critical)\""""
)
"""As Flower, Python and our own processes (``fedlora.runtime.processes.log``) begin what is bad."""


class ServiceLog:
    """The log of one service: lines with their time, without colours.

    It never fails: what a full disk does not take is counted, and told when there is room.
    """

    def __init__(self, path: Path, *, alarm: Callable[[str], None]) -> None:
        self._path = path
        self._alarm = alarm
        self._rest = b""
        self._lost = 0
        self.last_words: deque[str] = deque(maxlen=_LAST_WORDS)

    @contextmanager
    def of(self, process: subprocess.Popen[bytes]) -> Iterator[None]:
        """Log what comes through a process's pipe while the block runs, and what is left then."""
        if process.stdout is None:
            raise ValueError("The process was started without a pipe.")
        loop, handle = asyncio.get_running_loop(), process.stdout.fileno()
        os.set_blocking(handle, False)

        def read() -> bytes:
            try:
                output = os.read(handle, _CHUNK)
            except BlockingIOError:
                return b""
            if not output:
                loop.remove_reader(handle)
            self.write(output)
            return output

        loop.add_reader(handle, read)
        try:
            yield
        finally:
            loop.remove_reader(handle)
            for _ in range(_LEFT):
                if not read():
                    break
            process.stdout.close()
            self.write(b"\n")

    def write(self, output: bytes) -> None:
        """Take what came from the service; the end of a line may follow later."""
        *lines, self._rest = (self._rest + output).split(b"\n")
        while len(self._rest) > _LONGEST_LINE:
            lines.append(self._rest[:_LONGEST_LINE])
            self._rest = self._rest[_LONGEST_LINE:]
        for line in lines:
            self._take(line)

    def _take(self, line: bytes) -> None:
        text = _COLOUR.sub(b"", line).decode(errors="replace").rstrip()
        if not text:
            return
        self.last_words.append(text)
        if _ALARM.search(text):
            self._alarm(text)
        self._append(f"{_now()} {text}\n".encode())

    def _append(self, line: bytes) -> None:
        if self._lost:
            line = f"{_now()} ({self._lost} lines could not be written)\n".encode() + line
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            handle = os.open(self._path, flags, 0o640)
            try:
                written = os.write(handle, line)
                size = os.fstat(handle).st_size
            finally:
                os.close(handle)
            self._lost = 0 if written == len(line) else self._lost + 1
            if size >= _LARGEST:
                self._set_aside()
        except OSError:
            self._lost += 1

    def _set_aside(self) -> None:
        names = [self._path, *(Path(f"{self._path}.{n}") for n in range(1, _OLDER + 1))]
        for newer, older in reversed(list(pairwise(names))):
            if newer.exists():
                newer.replace(older)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
