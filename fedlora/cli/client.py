"""``fedlora client``: a site's folder, whether it is ready, its processes, how it is."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedlora.cli import client_approve, client_evidence, client_peers
from fedlora.cli.arguments import SiteDir, opened_site

if TYPE_CHECKING:
    from rich.console import Console

    from fedlora.runtime.client.check import Finding
    from fedlora.runtime.client.status import Status

app = typer.Typer(
    help="Run a site: its keys and policy, its processes, what leaves it.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

app.command()(client_approve.runs)
app.command()(client_approve.approve)
app.add_typer(client_evidence.app, name="evidence")
app.add_typer(client_peers.app, name="peers")

_COLOURS = {"ok": "green", "warning": "yellow", "failed": "red"}


@app.command()
def enroll(
    bundle: Annotated[Path, typer.Argument(help="The join bundle that the aggregator sent.")],
    directory: SiteDir = Path(),
    offline: Annotated[
        bool,
        typer.Option("--offline", help="Write the request to a file, to be carried over."),
    ] = False,
) -> None:
    """Join an aggregator: make this site's keys here, and send their public halves.

    It can be run again: the keys stay the same.
    """
    from fedlora.runtime.client.enrol import enrol
    from fedlora.runtime.client.folder import SiteFolder

    done = enrol(bundle, SiteFolder(directory), offline=offline)
    typer.echo(f"Site {done.bundle.site} of the aggregator {done.bundle.aggregator}.")
    typer.echo(f"Your keys:        {done.fingerprint}")
    typer.echo(f"Aggregator's CA:  SHA256 {done.bundle.ca_fingerprint}")
    if done.request is not None:
        typer.echo(f"\nNothing was sent. Carry {done.request} to the aggregator's operator.")
    elif done.state == "admitted":
        typer.echo("\nThe aggregator has admitted this site.")
    typer.echo(
        "\nNext:\n"
        "  1. Read both lines to the aggregator's operator over the telephone, or by another way\n"
        "     that this bundle did not come by. They must be the same there.\n"
        f"  2. Say in {done.folder.configuration} what data there is and what you allow.\n"
        f"  3. fedlora client check{_dir(directory)}\n"
        f"  4. fedlora client start{_dir(directory)}"
    )


@app.command()
def check(
    directory: SiteDir = Path(),
    step: Annotated[
        Path | None,
        typer.Option(metavar="RECIPE", help="Take one step of this recipe, too."),
    ] = None,
) -> None:
    """Try all that this site needs, and say what the aggregator would learn of it.

    Exits with 1 if something failed.
    """
    from rich.console import Console

    from fedlora.runtime.client.check import check as findings_of

    console, folder = Console(highlight=False), opened_site(directory)
    verdicts = []
    for finding in findings_of(folder):
        _print_finding(finding, console)
        verdicts.append(finding.verdict)
    if step is not None:
        finding = _stepped(step, folder.configuration)
        _print_finding(finding, console)
        verdicts.append(finding.verdict)
    _print_learned(directory, console)
    if "failed" in verdicts:
        raise typer.Exit(1)


@app.command()
def start(directory: SiteDir = Path()) -> None:
    """Run the site until it is told to stop: SuperNode, gate and trainer, started anew if they die.

    As root, SuperNode and gate run as the owner of the folder, and the trainer as a user of its
    own.
    """
    from fedlora.runtime.client.start import start as run
    from fedlora.runtime.processes import log

    folder = opened_site(directory.resolve())
    log.start("supervisor")
    run(folder)


@app.command()
def status(directory: SiteDir = Path()) -> None:
    """Show how the site is. Exits with 0 if all of its processes run, else with 1."""
    from rich.console import Console

    from fedlora.cli.services import print_services
    from fedlora.runtime.client.status import status as status_of

    console = Console(highlight=False, markup=False, soft_wrap=True)
    found = status_of(opened_site(directory))
    running = print_services(directory, console=console)
    _print_status(found, console)
    if not running:
        raise typer.Exit(1)


def _dir(directory: Path) -> str:
    return "" if directory == Path() else f" --dir {directory}"


def _stepped(recipe: Path, configuration: Path) -> "Finding":
    from fedlora.errors import FedloraError
    from fedlora.runtime.client.check import Finding
    from fedlora.runtime.client.configuration import read_site
    from fedlora.runtime.client.step import one_step

    try:
        found = one_step(recipe, read_site(configuration))
    except FedloraError as error:
        return Finding(what="one step", verdict="failed", found=str(error))
    return Finding(what="one step", verdict="ok", found=found)


def _print_finding(finding: "Finding", console: "Console") -> None:
    """Print a line; the terminal breaks it, so that a fingerprint is copied whole."""
    from rich.text import Text

    verdict = Text(f"{finding.verdict:7}", style=_COLOURS[finding.verdict])
    console.print(verdict, Text(f" {finding.what:20} {finding.found}"), soft_wrap=True)


def _print_learned(directory: Path, console: "Console") -> None:
    from rich.table import Table
    from rich.text import Text

    from fedlora.errors import FedloraError
    from fedlora.runtime.client.check import learned
    from fedlora.runtime.client.configuration import read_site
    from fedlora.runtime.client.folder import SiteFolder
    from fedlora.runtime.enrolment import JoinBundle

    folder = SiteFolder(directory)
    try:
        lines = list(learned(JoinBundle.read(folder.join), read_site(folder.configuration)))
    except FedloraError:
        return  # told above
    console.print("\nWhat the aggregator learns of this site:", style="bold")
    table = Table.grid(padding=(0, 2))
    for about, text in lines:
        table.add_row(Text(about), Text(text))
    console.print(table)


def _print_status(found: "Status", console: "Console") -> None:
    from rich.table import Table

    console.print()
    facts = Table.grid(padding=(0, 2))
    facts.add_row("site", found.site)
    facts.add_row("aggregator", found.aggregator)
    facts.add_row("connection", found.connection)
    facts.add_row("enrolment", found.enrolment)
    waiting = ", ".join(found.waiting)
    facts.add_row(
        "waits for you", f"{waiting}: fedlora client approve RUN" if waiting else "no run"
    )
    for account, spent in found.spent:
        facts.add_row("privacy spent", f"{spent} of account {account}")
    console.print(facts)
    if not found.evidence:
        return
    console.print()
    table = Table("entry", "time (UTC)", "what", box=None, header_style="bold", pad_edge=False)
    for logged in found.evidence:
        table.add_row(str(logged.head.count), logged.time[:19], logged.kind)
    console.print(table)
