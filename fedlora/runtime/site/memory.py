"""What a site must remember between rounds, on its own disk and under its own control."""

import os
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fedlora import atomic
from fedlora.errors import RunError
from fedlora.tensor_file import pieces

FOLDER = "FEDLORA_SITES"
"""Environment variable that names the folder in which each site has a folder of its own."""

SIMULATED = "FEDLORA_SIMULATED"
"""Environment variable that says that sites are simulated; noise may then be reproducible."""

_KEEP = 3
"""Rounds that are kept: the last, and what is needed when the last two are played again."""


def site_folder(site: str) -> Path:
    """Return the folder of a site, for what it must remember of all runs.

    Raises:
        RunError: ``FEDLORA_SITES`` is not set.
    """
    sites = os.environ.get(FOLDER)
    if not sites:
        raise RunError(
            f"This run must remember something between rounds: set {FOLDER} to a folder where the "
            "site may keep it."
        )
    return Path(sites) / site


@dataclass(frozen=True)
class SiteMemory:
    """Values by name and round of one run at one site.

    A round that is played again after a stop recalls what was kept before it, not what it kept
    itself at the first try.
    """

    site: str
    run: str

    @property
    def folder(self) -> Path:
        """The folder of this site and run: the aggregator names it, so nothing else is beside it.

        Raises:
            RunError: ``FEDLORA_SITES`` is not set.
        """
        return site_folder(self.site) / "runs" / self.run

    def keep(self, name: str, values: Tensor, *, number: int) -> None:
        """Keep the values of round ``number``, and forget those of rounds after it.

        Raises:
            StorageError: they cannot be written.
        """
        atomic.write_file(self._path(name, number), *pieces({name: values}))
        paths = self._paths(name)
        here = paths.index(self._path(name, number)) + 1
        for path in [*paths[: max(0, here - _KEEP)], *paths[here:]]:
            path.unlink(missing_ok=True)

    def recall(self, name: str, *, before: int) -> Tensor | None:
        """Return the values of the last round before ``before``; none where there is none.

        Raises:
            RunError: they cannot be read.
        """
        paths = self._before(name, before)
        if not paths:
            return None
        try:
            return load_file(paths[-1])[name]
        except (OSError, SafetensorError, KeyError) as error:
            raise RunError(
                f"{paths[-1]}: what the site remembers cannot be read ({error}). Put the file back "
                "from a backup; without it the site goes on from what it had a round before."
            ) from None

    def last(self, name: str, *, before: int) -> int:
        """Return the last round before ``before`` that has such values; 0 where there is none."""
        paths = self._before(name, before)
        return int(paths[-1].stem.rpartition("-")[2]) if paths else 0

    def _before(self, name: str, number: int) -> list[Path]:
        return [path for path in self._paths(name) if path < self._path(name, number)]

    def _path(self, name: str, number: int) -> Path:
        return self.folder / f"{name}-{number:08}.safetensors"

    def _paths(self, name: str) -> list[Path]:
        return sorted(self.folder.glob(f"{name}-*.safetensors"))
