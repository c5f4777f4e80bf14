"""The page of a study: one table, what it shows in sentences, a plot, and the raw results."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from fedlora import atomic
from simulations.studies.trials import Result

_MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True, kw_only=True)
class Page:
    """What a study shows, in Markdown's words."""

    title: str
    setting: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    findings: Sequence[str]
    """Sentences made of the numbers."""
    figure: str
    """An SVG document."""
    caption: str

    def to_markdown(self, *, name: str, command: str) -> str:
        """Return the text, which shows ``NAME.svg`` and tells of ``NAME.jsonl``."""
        parts = (
            f"# {self.title}",
            "\n".join(f"- {finding}" for finding in self.findings),
            _table(self.header, self.rows),
            f"![{self.caption}]({name}.svg)\n\n{self.caption}",
            "## Setting",
            self.setting,
            f"Made by `{command}`, which also wrote [every trial]({name}.jsonl).",
        )
        return "\n\n".join(parts) + "\n"


def write_page(
    page: Page, results: Iterable[Result], *, name: str, command: str, docs: Path
) -> Path:
    """Write ``NAME.md``, ``NAME.svg`` and ``NAME.jsonl``; return the first.

    Raises:
        StorageError: they cannot be written.
    """
    lines = [result.to_json() + "\n" for result in results]
    atomic.write_file(docs / f"{name}.jsonl", "".join(lines))
    atomic.write_file(docs / f"{name}.svg", page.figure)
    path = docs / f"{name}.md"
    atomic.write_file(path, page.to_markdown(name=name, command=command))
    return path


def shown(values: Sequence[float], form: str) -> str:
    """Return a mean, with its standard deviation if there are several values."""
    spread = f" ± {stdev(values):{form.lstrip('+')}}" if len(values) > 1 else ""
    return signed(fmean(values), form) + spread


def signed(value: float, form: str) -> str:
    """Return a number with a minus sign that is as wide as a plus."""
    return format(value, form).replace("-", _MINUS)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
