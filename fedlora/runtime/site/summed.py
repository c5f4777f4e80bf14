"""Which sums a site is in: what it must never forget, or two of them could tell of its update."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter

from fedlora import atomic
from fedlora.errors import StorageError, SummedError
from fedlora.runtime.secure_terms import REVEALED
from fedlora.runtime.site.memory import site_folder
from fedlora.sections import Digest, Name, Section


class _Sum(Section):
    """A sum that a site is in."""

    context: Digest
    members: Annotated[tuple[Name, ...], Field(strict=False)]


_SUMS = TypeAdapter(dict[Digest, _Sum])


@dataclass(frozen=True)
class Summed:
    """The sums that a site is in, in whatever run: on disk before it agrees to one.

    Two sums with one update in both tell the difference of what else is in them. So an update that
    is in one sum is in no other, but in the same over again: of the same recipe, run and round,
    over the same members.
    """

    site: str

    def require_none(self, update: str) -> None:
        """Do nothing if an update is in no sum: with fresh noise not even the same is the same.

        Args:
            update: SHA-256 of its values.

        Raises:
            SummedError: it is in one.
            StorageError: the record cannot be read.
        """
        if update in self._all():
            raise SummedError(REVEALED)

    def keep(self, update: str, *, context: bytes, members: Collection[str]) -> None:
        """Note that an update is to be in a sum.

        Args:
            update: SHA-256 of its values.
            context: what all members have signed of the sum: recipe, base, adapter, run and round.
            members: of the sum.

        Raises:
            SummedError: it is in another.
            StorageError: the record cannot be read or written.
        """
        known, this = self._all(), _Sum(context=context.hex(), members=tuple(sorted(members)))
        if known.pop(update, this) != this:
            raise SummedError(REVEALED)
        atomic.write_file(self._path, _SUMS.dump_json({**known, update: this}, indent=1))

    def last(self) -> Collection[str]:
        """Return the members of the last sum; none before the first.

        Raises:
            StorageError: the record cannot be read.
        """
        return next((known.members for known in reversed(self._all().values())), ())

    @property
    def _path(self) -> Path:
        return site_folder(self.site) / "summed.json"

    def _all(self) -> dict[str, _Sum]:
        """Return each sum by the update that is in it, the last one last."""
        try:
            return _SUMS.validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise StorageError(
                f"{self._path}: the sums that the site has been in cannot be read ({error}). Put "
                "the file back from a backup: without it, nothing is summed."
            ) from None
