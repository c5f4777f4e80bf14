"""The tables that a command prints: what a run will cost, what it reached, where it is."""

from rich.console import Console
from rich.table import Table

from fedlora.runtime.comparison import Comparison, Losses, overall
from fedlora.runtime.format import duration, size
from fedlora.runtime.plan import Plan
from fedlora.runtime.run_folder import RunFolder

_console = Console(highlight=False)
_MANY_SITES = 8
"""Above this a table shows the sites' mean instead of a row and a column for each."""


def print_plan(plan: Plan) -> None:
    """Print the sites' data and what a round costs."""
    recipe, base = plan.recipe, plan.base
    sites = Table("site", "format", box=None, header_style="bold", pad_edge=False)
    for column in ("training rows", "held out"):
        sites.add_column(column, justify="right")
    for site in plan.sites:
        rows = f"{site.train_rows:,}", f"{site.held_out_rows:,}"
        sites.add_row(site.name, ", ".join(site.types), *rows)
    _console.print(sites)
    each, federation = size(plan.message_bytes), recipe.federation
    facts = Table.grid(padding=(0, 2))
    facts.add_row(
        "base model", f"{recipe.base_model} ({base.architecture}, {base.parameters:,} parameters)"
    )
    facts.add_row(
        "trainable",
        f"{base.spec.size:,} parameters ({base.spec.size / base.parameters:.1%} of the base), "
        f"{recipe.adapter} r={recipe.lora_r}",
    )
    facts.add_row("compute", f"{base.dtype} on {base.device}, about {size(base.memory)} of memory")
    facts.add_row(
        "schedule",
        f"{federation.rounds} rounds of {federation.local_steps} steps of {recipe.batch_size} "
        f"examples at each of {recipe.cohort_size} clients",
    )
    facts.add_row("traffic", f"{each} down and up for a client and round, {each} to evaluate")
    _console.print(facts)
    _console.print()


def print_comparison(comparison: Comparison) -> None:
    """Print held-out loss by site, and overall, for the base and each way of training."""
    if not comparison.base:
        _console.print("\nNo loss was measured at both ends of the run.")
        return
    sites = list(comparison.base)
    shown = sites if len(sites) <= _MANY_SITES else []
    table = Table(title="Held-out loss, nats per token", title_justify="left", box=None)
    table.add_column("trained on", style="bold")
    for site in (*shown, "overall", "perplexity"):
        table.add_column(site, justify="right")

    def add(label: str, losses: Losses, *, style: str = "") -> None:
        total = overall(losses)
        cells = [f"{losses[site].loss:.3f}" if site in losses else "-" for site in shown]
        table.add_row(label, *cells, f"{total.loss:.3f}", f"{total.perplexity:.1f}", style=style)

    add("nothing (base)", comparison.base)
    for site in shown:
        if site in comparison.alone:
            add(f"{site} alone", comparison.alone[site], style="dim")
    if comparison.alone:
        blanks = [""] * len(shown)
        table.add_row("mean of sites alone", *blanks, f"{comparison.alone_mean:.3f}", "")
    add("federated", comparison.federated, style="green")
    if comparison.pooled:
        add("all data pooled", comparison.pooled)
    _console.print()
    _console.print(table)
    if comparison.gap_closed is not None:
        _console.print(
            f"\nThe federation closed {comparison.gap_closed:.0%} of the gap between "
            "a site alone and all data pooled."
        )


def print_outcome(run: RunFolder) -> None:
    """Print where the results are and what to do with them."""
    seconds = sum(record["seconds"] for record in run.records())
    _console.print(f"\nThe rounds took {duration(seconds)}.")
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("adapter", str(run.release))
    table.add_row("report", str(run.report))
    table.add_row("try it", f"fedlora chat {run.path}")
    _console.print(table)
