"""The tables of ``fedlora adapters``: names, releases of a name, one release."""

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table

from fedlora.release.index import Index
from fedlora.release.manifest import Evaluation, Loss, Manifest, Privacy
from fedlora.runtime.reports import format as fmt
from fedlora.runtime.reports.format import counted, size
from fedlora.sections import LossUnit

_console = Console(highlight=False, markup=False, soft_wrap=True)


def print_names(indices: Sequence[Index]) -> None:
    """Print each name with its aliases."""
    table = _table("name", "releases", "aliases", "signed until")
    for index in indices:
        aliases = ", ".join(f"{a} {to.release[:12]}" for a, to in sorted(index.aliases.items()))
        table.add_row(index.name, str(len(index.releases)), aliases, index.expires)
    _console.print(table)


def print_releases(index: Index) -> None:
    """Print the releases of a name, newest first, with what points to each."""
    table = _table("release", "published", "aliases", "state")
    for release in reversed(index.in_order):
        published = index.releases[release]
        pointing = (alias for alias, to in index.aliases.items() if to.release == release)
        state = "files removed" if published.collected else ""
        if published.revoked:
            state = f"revoked {published.revoked.at}: {published.revoked.reason}"
        style = "dim" if state else ""
        table.add_row(release[:12], published.at, ", ".join(sorted(pointing)), state, style=style)
    _console.print(table)
    _console.print(f"\nIndex {index.version}, signed until {index.expires}.", style="dim")


def print_manifest(manifest: Manifest) -> None:
    """Print what a release is."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    for label, value in _facts(manifest):
        grid.add_row(label, value)
    _console.print(grid)
    _console.print()
    for sentence in manifest.privacy.statement:
        _console.print(sentence)


def _facts(manifest: Manifest) -> Iterator[tuple[str, str]]:
    base, adapter, origin = manifest.base, manifest.adapter, manifest.origin
    yield "release", f"{manifest.name} {manifest.release}"
    yield "kind", manifest.kind
    yield "created", manifest.created
    yield "files", f"{len(manifest.files)}, {size(sum(f.size for f in manifest.files.values()))}"
    revision = f" at {base.revision}" if base.revision else ""
    yield "base model", f"{base.name}{revision} ({base.digest[:12]})"
    shape = f"rank {adapter.rank}, alpha {adapter.alpha:g}, {counted(adapter.modules, 'module')}"
    yield "adapter", f"{shape}, {adapter.parameters:,} parameters"
    if adapter.labels:
        yield "tells apart", ", ".join(adapter.labels)
    parent = f", after {origin.parent[:12]}" if origin.parent else ""
    yield "from", f"run {origin.run}, round {origin.round} of {origin.rounds}{parent}"
    if origin.began_with:
        yield "began with", f"release {origin.began_with[:12]}"
    yield "sites", _sites(manifest)
    cut = manifest.aggregation.truncation_error
    lost = "" if cut is None else f", {100 * cut:.2g} % cut off"
    yield "aggregation", f"{manifest.aggregation.method}{lost}"
    yield "privacy", _privacy(manifest.privacy)
    yield from _losses(manifest.evaluation)
    yield "made by", f"fedlora {manifest.code.fedlora}, torch {manifest.code.torch}"


def _sites(manifest: Manifest) -> str:
    cohort = manifest.cohort
    if cohort.sites is None:
        return f"{cohort.population} enrolled"
    return f"{len(cohort.sites)} of {cohort.population}"


def _privacy(privacy: Privacy) -> str:
    sums = f", sums of {privacy.secure_sums.fewest} or more" if privacy.secure_sums else ""
    if privacy.unit == "none" or privacy.epsilon is None or privacy.delta is None:
        return f"none{sums}"
    return f"{privacy.unit}-level, ε {privacy.epsilon:g} at δ {privacy.delta:g}{sums}"


def _losses(evaluation: Evaluation) -> Iterator[tuple[str, str]]:
    if evaluation.held_out:
        yield (
            "held-out loss",
            f"{_change(evaluation.held_out, evaluation.unit or 'token')}, mean of the sites",
        )
    if evaluation.forgetting:
        yield "general text", _change(evaluation.forgetting, "token")


def _change(loss: Loss, unit: LossUnit) -> str:
    return f"{fmt.loss(loss.base)} → {fmt.loss(loss.adapter)} nats per {unit}"


def _table(*columns: str) -> Table:
    return Table(*columns, box=None, header_style="bold", pad_edge=False)
