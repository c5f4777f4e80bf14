"""What ``fedlora data check`` prints."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedlora.data.examples import Labelled
from fedlora.data.tokens import Tokenizer, marks_answers
from fedlora.recipe import Recipe
from fedlora.runtime.data_check import DataReport, pieces
from fedlora.runtime.reports.format import counted

_SHOWN = 10
"""Reasons that are listed, and places that are named of each."""
_BINS = 10
_BAR = 40
_LONGEST = 800
"""Characters that are shown of a piece of a row: its beginning and its end."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

_console = Console(highlight=False, markup=False)


def waiting(path: str) -> AbstractContextManager[object]:
    """Show that a dataset is being read."""
    return _console.status(Text(f"reading {path}"))


def print_report(report: DataReport, recipe: Recipe) -> None:
    """Print what is in a dataset, and what of it cannot be learned from."""
    prepared, length = report.prepared, recipe.sequence_len
    kept, refused = len(report.rows), len(report.problems)
    if report.failure:
        _console.print(Text(report.source, style="bold"))
        _print_problems(report)
        return
    _console.print(Text(f"{report.source}: {report.format}", style="bold"))
    facts = Table.grid(padding=(0, 2))
    facts.add_row("  rows", f"{kept:,} kept, {refused:,} refused, {prepared.dropped:,} too long")
    if prepared.cut:
        fate = f"{prepared.cut:,} of those kept are longer than sequence_len, {length}"
        facts.add_row("  cut", f"{fate}, and lose their beginning or end")
    if copies := report.copies:
        facts.add_row("  copies", f"{counted(len(copies), 'row')}: {_places(copies)}")
    if report.labels:
        facts.add_row("  labels", ", ".join(f"{name} {n:,}" for name, n in report.labels.items()))
    elif report.tokens:
        share = report.supervised / report.tokens
        facts.add_row("  learned", f"{share:.1%} of {report.tokens:,} tokens")
    _console.print(facts)
    if prepared.lengths:
        _console.print(_histogram(prepared.lengths, length))
    _print_problems(report)
    _console.print()


def print_sample(reports: Iterable[DataReport], tokenizer: Tokenizer) -> None:
    """Print one row as it is trained on, what is learned of it in brackets and green."""
    found = next((report for report in reports if report.rows), None)
    if found is None:
        return
    markers = "with" if marks_answers(tokenizer) else "without"
    named = f"chat template {markers} markers" if tokenizer.chat_template else "no chat template"
    first, row = found.rows[0], found.prepared.rows[0]
    title = f"{first.where}, {named}; learned is what stands in ⟦brackets⟧:"
    if isinstance(first, Labelled):
        title = f"{first.where}; learned is its label, {first.label}:"
    _console.print(Text(title, style="bold"))
    for sequence in row.sequences:
        text = Text()
        for piece in pieces(sequence, tokenizer):
            shown = _shortened(_CONTROL.sub("�", piece.text))
            text.append(f"⟦{shown}⟧" if piece.learned else shown, "green" if piece.learned else "")
        _console.print(text, soft_wrap=True)
        _console.print()


def print_faults(faults: Sequence[str]) -> None:
    """Print why training would go wrong, or that it would not."""
    if not faults:
        _console.print("Training can use this.", style="green")
    for fault in faults:
        _console.print(Text(f"✗ {fault}", style="red"))


def _print_problems(report: DataReport) -> None:
    """Print why rows are refused, the places of like reasons together."""
    reasons = Counter(problem.reason for problem in report.problems)
    for reason, _ in reasons.most_common(_SHOWN):
        places = [problem.where for problem in report.problems if problem.reason == reason]
        _console.print(Text(f"  ✗ {_places(places)}: {reason}", style="red"), soft_wrap=True)
    if len(reasons) > _SHOWN:
        more = counted(len(reasons) - _SHOWN, "other reason")
        _console.print(f"  … and {more}", style="red")


def _places(places: Sequence[str]) -> str:
    """Name places, the file once for those that stand in it together."""
    named, last = [], ""
    for place in places[:_SHOWN]:
        file, _, inside = place.partition(", ")
        named.append(inside if file == last and inside else place)
        last = file
    more = f" and {len(places) - _SHOWN:,} more" if places[_SHOWN:] else ""
    return "; ".join(named) + more


def _histogram(lengths: Sequence[int], longest: int) -> Table:
    """Return how many rows have how many tokens, before any are cut."""
    width = 2 ** max(0, (max(lengths) // _BINS).bit_length())
    counts = Counter(length // width for length in lengths)
    table = Table.grid(padding=(0, 1))
    table.add_column(justify="right", min_width=14)
    table.add_column(min_width=_BAR)
    table.add_column(justify="right")
    most = max(counts.values())
    for place in range(max(counts) + 1):
        count, first = counts[place], place * width
        bar = "█" * -(-count * _BAR // most)
        style = "yellow" if first > longest else ""
        table.add_row(f"{first}-{first + width - 1}", Text(bar, style=style), f"{count:,}")
    ordered = sorted(lengths)
    middle, most_rows = ordered[len(ordered) // 2], ordered[len(ordered) * 95 // 100]
    summary = f"median {middle}, 95 % up to {most_rows}, longest {ordered[-1]}"
    table.add_row("tokens", Text(summary, style="dim"), "rows")
    return table


def _shortened(text: str) -> str:
    half = _LONGEST // 2
    return text if len(text) <= _LONGEST else f"{text[:half]} … {text[-half:]}"
