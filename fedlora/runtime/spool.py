"""Encoded updates on disk between their arrival and the end of their round."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedlora import atomic
from fedlora.errors import StorageError


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
        """Return a kept update and its metrics.

        Raises:
            StorageError: the file cannot be read, or is damaged.
        """
        path = self.folder / site
        try:
            line, _, payload = path.read_bytes().partition(b"\n")
            return payload, json.loads(line)
        except (OSError, ValueError) as error:
            raise StorageError(
                f"{path}: a spooled update cannot be read ({error}). Resume the run: the site is "
                "asked again."
            ) from None

    def sites(self) -> frozenset[str]:
        """Return the clients whose update is kept."""
        if not self.folder.is_dir():
            return frozenset()
        return frozenset(p.name for p in self.folder.iterdir() if not p.name.startswith("."))
