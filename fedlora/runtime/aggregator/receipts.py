"""The aggregator's receipts: how far it has seen a log of each site come, in this run or another.

A site has two: its privacy ledger, and as a deployed site its evidence log. It mirrors the head of
each beside the file. Putting back yesterday's copy of both is caught here: each instruction tells a
site the newest head that it ever sent, and one whose log does not have that row stops before it
does anything.
"""

import fcntl
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from fedlora import atomic
from fedlora.chained_file import EMPTY, Head
from fedlora.errors import StorageError, WireError
from fedlora.runtime.run_folder import RunFolder
from fedlora.runtime.site.memory import FOLDER, SIMULATED


class Receipts:
    """The newest head of a log of each site, one small file a site.

    Guarantees:
        - What ``take`` returned from survives a kill, a power failure, and the end of the run, and
          runs that go on at the same time.

    Args:
        folder: where the files are; made when the first is written.
        log: what errors call the log.
        form: what is taken and kept: a bare head, or one with its signature.
    """

    def __init__(self, folder: Path, *, log: str = "ledger", form: type[Head] = Head) -> None:
        self._folder = folder
        self._log = log
        self._form = form
        self._sent: dict[str, Head] = {}

    @classmethod
    def of(cls, run: RunFolder) -> Self:
        """Return the receipts of ledgers that the runs beside this one share.

        Where sites are simulated, they lie with the sites and so end with their ledgers.
        """
        simulated = os.environ.get(SIMULATED) and os.environ.get(FOLDER)
        # no site has such a name
        return cls(Path(simulated) / ".receipts" if simulated else run.path.parent / "receipts")

    def sent_to(self, sites: Iterable[str]) -> Mapping[str, Head]:
        """Return the newest head of each site, and remember that it was sent with an instruction.

        Raises:
            StorageError: one cannot be read.
        """
        heads = {site: self._newest(site) for site in sites}
        self._sent.update(heads)
        return heads

    def take(self, site: str, head: Head) -> None:
        """Keep the head that came with a site's reply to the last instruction.

        An answer that is sent again comes with the head of the day. A head between the one that was
        sent and the newest is that of a site that answered another run of this aggregator's
        meanwhile.

        Raises:
            WireError: it is older than the head that was sent, or another.
            StorageError: it cannot be written.
        """
        with self._alone():
            self._take(site, head, newest=self._newest(site))

    def _take(self, site: str, head: Head, *, newest: Head) -> None:
        if head.count < self._sent[site].count:
            raise WireError(
                f"{site} says that its {self._log} has {head.count} rows, but it had "
                f"{self._sent[site].count} before: an older {self._log} was put in its place. The "
                "site has to put the newest one back."
            )
        for seen in (self._sent[site], newest):
            if head.count == seen.count and head.hash != seen.hash:
                raise WireError(
                    f"{site} says that row {head.count} of its {self._log} has the hash "
                    f"{head.hash[:12]}, but it was {seen.hash[:12]} before: another {self._log} "
                    "was put in its place. The site has to put back the one that it wrote last."
                )
        if head.count > newest.count:
            head.keep(self._path(site))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other runs from writing meanwhile: the slower would set the faster back."""
        with atomic.storage_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            lock = (self._folder / ".lock").open("wb")  # no site has such a name
            fcntl.flock(lock, fcntl.LOCK_EX)
        with lock:
            yield

    def _newest(self, site: str) -> Head:
        try:
            return self._form.kept(self._path(site))
        except FileNotFoundError:
            return EMPTY
        except (OSError, ValueError) as error:
            raise StorageError(
                f"{self._path(site)}: the receipt of the {self._log} of {site} cannot be read "
                f"({error}). Put the file back from a backup; an older one is better than none."
            ) from None

    def _path(self, site: str) -> Path:
        return self._folder / site
