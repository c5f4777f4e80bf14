"""What an index says of each release and of each alias."""

from typing import Annotated, Self

from pydantic import Field

from fedlora.errors import ReleaseError
from fedlora.release.manifest import Time
from fedlora.sections import Digest, Section

_LONGEST_REASON = 500
Reason = Annotated[str, Field(min_length=1, max_length=_LONGEST_REASON)]


class Revoked(Section):
    """That a release is not to be used any more."""

    at: Time
    reason: Reason


class Published(Section):
    """A release of the name."""

    at: Time
    version: Annotated[int, Field(ge=1)]
    """Of the index that listed it first: releases in this order came one after another."""
    revoked: Revoked | None = None
    collected: Time | None = None
    """When its files were removed from the store."""

    def keeps(self, before: Self) -> bool:
        """Tell whether this says of a release all that ``before`` did."""
        same = (self.at, self.version) == (before.at, before.version)
        marks = (before.revoked, self.revoked), (before.collected, self.collected)
        return same and all(was is None or was == now for was, now in marks)


class Alias(Section):
    """Where a moving name points."""

    release: Digest
    since: Time
    reason: Reason
    before: Annotated[tuple[Digest, ...], Field(strict=False)] = ()
    """Where it pointed before, newest last: what a rollback goes back to."""


def as_reason(text: str) -> str:
    """Return a reason that an index can hold.

    Raises:
        ReleaseError: there is none, or it is too long.
    """
    if not 1 <= len(text) <= _LONGEST_REASON:
        raise ReleaseError(
            f"A reason of 1 to {_LONGEST_REASON} letters was expected, this has {len(text)}."
        )
    return text
