"""Who shares masks and secrets with whom."""

from collections.abc import Sequence


def neighbours(count: int, *, degree: int | None) -> Sequence[tuple[int, ...]]:
    """Return each place's neighbours: all others, or ``degree`` of them by a random graph."""
    return [tuple(o for o in range(count) if o != place) for place in range(count)]
