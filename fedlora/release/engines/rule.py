"""What a rule is: something that can be found, and what each engine does then."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from fedlora.release.engines.adapter import AdapterFolder
from fedlora.release.engines.traits import Options

Engine = Literal["vllm", "lorax", "sglang", "ollama"]
ENGINES: tuple[Engine, ...] = get_args(Engine)
Severity = Literal["refuses", "wrong results", "warns"]


@dataclass(frozen=True)
class Verdict:
    """What an engine does."""

    severity: Severity
    why: str
    source: str
    """The file of the engine that decides it."""


@dataclass(frozen=True)
class Rule:
    """Something that can be found, what to do about it, and what each engine does otherwise."""

    find: Callable[[AdapterFolder, Options], str | None]
    advice: str
    engines: Mapping[Engine, Verdict]


def refuses(why: str, source: str) -> Verdict:
    """The adapter is not loaded, and the engine says so."""
    return Verdict("refuses", why, source)


def wrong(why: str, source: str) -> Verdict:
    """The adapter is loaded, and the engine computes something else than PEFT."""
    return Verdict("wrong results", why, source)


def warns(why: str, source: str) -> Verdict:
    """The adapter is loaded and right; something about it is not."""
    return Verdict("warns", why, source)
