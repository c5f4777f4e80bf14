"""The tables that a command prints: what a run will cost, what it reached, where it is."""

from rich.console import Console
from rich.table import Table

from fedlora.recipe import Recipe
from fedlora.runtime import secure_statement
from fedlora.runtime.comparison import read_comparison
from fedlora.runtime.plan import Plan
from fedlora.runtime.privacy_plan import absurdity, lines
from fedlora.runtime.privacy_statement import summary
from fedlora.runtime.reports import findings
from fedlora.runtime.reports import format as fmt
from fedlora.runtime.reports.format import counted, duration, size
from fedlora.runtime.run_folder import RunFolder

_console = Console(highlight=False)
_STYLES = {"alone": "dim", "federated": "green"}


def print_plan(plan: Plan) -> None:
    """Print the sites' data and what a round costs."""
    recipe, base = plan.recipe, plan.base
    sites = Table("site", "format", box=None, header_style="bold", pad_edge=False)
    declared = recipe.privacy.unit == "example"
    for column in ("records declared" if declared else "training rows", "held out"):
        sites.add_column(column, justify="right")
    for site in plan.sites:
        rows = f"{site.train_rows:,}", f"{site.held_out_rows:,}"
        sites.add_row(site.name, ", ".join(site.types), *rows)
    _console.print(sites)
    down, up, federation = size(plan.bytes_down), size(plan.bytes_up), recipe.federation
    facts = Table.grid(padding=(0, 2))
    facts.add_row(
        "base model", f"{recipe.base_model} ({base.architecture}, {base.parameters:,} parameters)"
    )
    facts.add_row(
        "trainable",
        f"{base.spec.size:,} parameters ({base.spec.size / base.parameters:.1%} of the base), "
        f"{recipe.adapter} r={recipe.rank}",
    )
    facts.add_row("compute", f"{base.dtype} on {base.device}, weights held in {base.weights}")
    facts.add_row("memory", f"about {size(base.memory)} of {size(base.placement.room)} free")
    facts.add_row(
        "schedule",
        f"{counted(federation.rounds, 'round')} of {counted(federation.local_steps, 'step')} of "
        f"{counted(recipe.batch_size, 'example')} at each of {_cohort(recipe)}",
    )
    facts.add_row("method", _method(recipe))
    facts.add_row("privacy", summary(recipe))
    if recipe.privacy.secure_aggregation:
        facts.add_row("secure sum", secure_statement.summary(recipe))
    evaluation = f", {down} down to evaluate" if federation.evaluate_every else ""
    facts.add_row("traffic", f"{down} down and {up} up for a client and round{evaluation}")
    _console.print(facts)
    if reason := _absurdity(recipe):
        _console.print(f"\n{reason}", style="bold yellow", markup=False)
    _console.print()


def _absurdity(recipe: Recipe) -> str:
    return "" if recipe.privacy.unit == "none" else absurdity(recipe, lines(recipe, compared=()))


def _cohort(recipe: Recipe) -> str:
    average = " on average" if recipe.federation.cohort_sampling == "poisson" else ""
    return f"{counted(recipe.cohort_size, 'client')}{average}"


def _method(recipe: Recipe) -> str:
    """Return how updates become one, such as ``product, server momentum 0.5, multi-krum``."""
    federation = recipe.federation
    optimizer = "" if federation.server_optimizer == "sgd" else f"{federation.server_optimizer}, "
    parts = [federation.method, f"{optimizer}server momentum {federation.server_momentum:g}"]
    if federation.robust != "none":
        parts.append(federation.robust)
    return ", ".join([*parts, f"updates in {recipe.wire.codec}"])


def print_comparison(run: RunFolder) -> None:
    """Print held-out loss by site, and overall, for the base and each way of training."""
    records, comparison = run.records(), read_comparison(run)
    sites = findings.sites_of(records) if len(comparison.base) <= findings.MANY_SITES else []
    unit = run.recipe().loss_unit
    table = Table(title=f"Held-out loss, nats per {unit}", title_justify="left", box=None)
    table.add_column("trained on", style="bold")
    for name in (*sites, "overall", *(["perplexity"] if unit == "token" else [])):
        table.add_column(name, justify="right")
    for row in findings.trained(comparison):
        if sites or row.kind != "alone":
            cells = [fmt.loss(loss) for loss in row.values(sites)]
            if unit == "token":
                cells.append(fmt.perplexity(row.perplexity))
            table.add_row(row.label, *cells, style=_STYLES.get(row.kind, ""))
    _console.print()
    if table.row_count:
        _console.print(table)
        _console.print()
    measured = Table("measured", "base", "adapter", box=None, pad_edge=False)
    for measure in findings.measures(records):
        measured.add_row(
            f"{measure.name}{measure.unit and ','}{measure.unit}", measure.base, measure.adapter
        )
    if measured.row_count:
        _console.print(measured)
        _console.print()
    _console.print(findings.outcome(records, comparison, unit=unit))


def print_outcome(run: RunFolder) -> None:
    """Print where the results are and what to do with them."""
    seconds = sum(record["seconds"] for record in run.records())
    _console.print(f"\nThe rounds took {duration(seconds)}.")
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("adapter", str(run.release))
    table.add_row("report", str(run.report))
    personal = run.recipe().federation.facts.personal
    chosen = next(iter(sorted(run.release.iterdir()))) if personal else run.path
    if not run.recipe().labels:
        table.add_row("try it", f"fedlora chat {chosen}")
    _console.print(table)
