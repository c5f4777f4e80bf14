"""How the report shows numbers; what is missing or not finite is a dash."""

import math

_NONE = "\N{EN DASH}"


def number(value: object) -> float:
    """Return what a record holds as a number; not a number if it is missing or something else."""
    return float(value) if isinstance(value, int | float) else math.nan


def loss(value: float, digits: int = 3) -> str:
    """Return a loss, such as ``3.892``."""
    return f"{value:.{digits}f}" if math.isfinite(value) else _NONE


def perplexity(value: float) -> str:
    """Return a perplexity, such as ``48.9`` or ``270``."""
    if not math.isfinite(value):
        return _NONE
    if value >= 1e6:
        return f"{value:.1e}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def percent(share: float, digits: int = 0) -> str:
    """Return a share, such as ``92 %``."""
    if not math.isfinite(share):
        return _NONE
    return f"{share:.{digits}%}".replace("%", "\N{NO-BREAK SPACE}%")


def tiny(value: float) -> str:
    """Return a number that is far below 1, such as ``1.9e-07``."""
    return f"{value:.1e}" if math.isfinite(value) else _NONE


def counted(count: int, noun: str) -> str:
    """Return a count with its noun, such as ``1 site`` or ``4 sites``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def size(count: float) -> str:
    """Return a number of bytes, such as ``1.2 MB``."""
    if not math.isfinite(count):
        return _NONE
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration(seconds: float) -> str:
    """Return a duration, such as ``12 s`` or ``3:05 min``."""
    if not math.isfinite(seconds):
        return _NONE
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"
