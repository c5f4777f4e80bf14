"""The table of ``fedlora privacy plan``."""

import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from fedlora.recipe import Recipe
from fedlora.runtime import secure_statement
from fedlora.runtime.charges import round_charge
from fedlora.runtime.privacy_plan import Line
from fedlora.runtime.privacy_statement import NEIGHBOURS, against

_console = Console(highlight=False)
_SIGNAL = (
    "noise: standard deviation over the {over}. signal/noise: norm of a {step}'s sum over that of "
    "its noise, at best. in an account: what {ledger} counts the run as, since later runs may be "
    "chosen in its light."
)
_READERS = (
    " for readers: ε against those who see the global adapters and do not know who took part, if "
    "every site that is drawn answers."
)


def print_lines(recipe: Recipe, lines: Sequence[Line]) -> None:
    """Print what each budget asks for; the recipe's own is green."""
    if recipe.privacy.unit == "client":
        _print_clients(recipe, lines)
    else:
        _print_examples(recipe, lines)
    if recipe.privacy.secure_aggregation:
        _print_paragraph(f"\nSecure sum: {secure_statement.summary(recipe)}.")


def _print_examples(recipe: Recipe, lines: Sequence[Line]) -> None:
    federation = recipe.federation
    _print_paragraph(
        f"One training record more or less, Poisson sampling, δ {recipe.privacy.delta:g}, "
        f"{federation.rounds} rounds of {federation.local_steps} steps of {recipe.batch_size} "
        f"records on average, {federation.method}.\n"
    )
    table = _table("sites", "records", "rate", "ε", "noise", "signal/noise", "of the run")
    table.add_column("in an account", justify="right", no_wrap=True)
    before: Sequence[str] = ()
    for line in lines:
        facts = [", ".join(line.sites), f"{line.records:,}", f"{line.sampling_rate:.3g}"]
        table.add_row(
            *(facts if line.sites != before else ["", "", ""]),
            *(f"{line.epsilon:g}", *_of(line)),
            style=_style(recipe, line),
        )
        before = line.sites
    table.add_row("", "", "", "∞", "0", "∞", "∞", "∞")
    _console.print(table)
    explained = _SIGNAL.format(over="clip norm", step="step", ledger="a site's ledger")
    _print_paragraph(f"\n{explained}")


def _print_clients(recipe: Recipe, lines: Sequence[Line]) -> None:
    federation, charge = recipe.federation, round_charge(recipe)
    neighbours = NEIGHBOURS[charge.adjacency].capitalize()
    poisson = federation.cohort_sampling == "poisson"
    cohort = f"{recipe.cohort_size} of {len(recipe.site_names)} clients"
    _print_paragraph(
        f"{neighbours}, sensitivity {charge.sensitivity:g} (clip norm "
        f"{recipe.privacy.clip_norm:g}), δ {recipe.privacy.delta:g}, {federation.rounds} rounds "
        f"with {cohort}{' on average (Poisson cohorts)' if poisson else ''}, "
        f"{federation.method}.\n"
    )
    table = _table("ε", *(["for readers"] if poisson else []), "noise", "signal/noise")
    table.add_column("of the run", justify="right")
    table.add_column("in an account", justify="right", no_wrap=True)
    for line in lines:
        readers = [f"{line.readers_epsilon:.2g}"] if poisson else []
        table.add_row(f"{line.epsilon:g}", *readers, *_of(line), style=_style(recipe, line))
    table.add_row("∞", *(["∞"] if poisson else []), "0", "∞", "∞", "∞")
    _console.print(table)
    explained = _SIGNAL.format(over="sensitivity", step="round", ledger="the aggregator's ledger")
    if recipe.privacy.secure_aggregation:
        _print_paragraph(
            f"\n{against(recipe)} Each site adds a share of the noise: noise is that of the fewest "
            f"honest shares, the signal's that of all. {explained}"
        )
        return
    _print_paragraph(
        "\nε: against all who see the global adapters, even if they know who took part."
        f"{_READERS if poisson else ''} {explained}"
    )


def _table(first: str, *columns: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _of(line: Line) -> Sequence[str]:
    """Return what is printed of a budget's noise, and what it leaves to learn."""
    return (
        f"{line.noise_multiplier:.3g}" if math.isfinite(line.noise_multiplier) else "too much",
        f"{line.step_signal:.2g}",
        f"{line.run_signal:.2g}",
        f"{line.account_epsilon:.3g}",
    )


def _style(recipe: Recipe, line: Line) -> str:
    return "green" if line.epsilon == recipe.privacy.epsilon else ""


def _print_paragraph(text: str) -> None:
    _console.print(text, soft_wrap=True, markup=False)
