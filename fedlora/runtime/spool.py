"""Encoded updates on disk between their arrival and the end of their round."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedlora import atomic


@dataclass(frozen=True)
class Spool:
    """One file per client of one round: a line of metrics, then the encoded update.

    A file is there whole or not at all, so a restarted round folds what arrived before the stop.
    """

    folder: Path

    def put(self, site: str, payload: bytes, metrics: Mapping[str, int | float]) -> None:
        """Keep a client's update.

        Raises:
            StorageError: it cannot be written.
        """
        atomic.write_file(self.folder / site, json.dumps(dict(metrics)), "\n", payload)

    def get(self, site: str) -> tuple[bytes, dict[str, int | float]]:
        """Return a kept update and its metrics."""
        line, _, payload = (self.folder / site).read_bytes().partition(b"\n")
        return payload, json.loads(line)

    def sites(self) -> frozenset[str]:
        """Return the clients whose update is kept."""
        if not self.folder.is_dir():
            return frozenset()
        return frozenset(p.name for p in self.folder.iterdir() if not p.name.startswith("."))
