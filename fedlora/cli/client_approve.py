"""``fedlora client approve`` and ``runs``: a person's yes to what the aggregator asks."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedlora.cli.arguments import SiteDir, opened_site
from fedlora.errors import RunError

if TYPE_CHECKING:
    from fedlora.runtime.client.approvals import Request
    from fedlora.runtime.client.folder import SiteFolder


def approve(
    run: Annotated[str, typer.Argument(help="Name of a run, as `fedlora client runs` lists it.")],
    directory: SiteDir = Path(),
    refuse: Annotated[bool, typer.Option("--refuse", help="Say no; also to end a yes.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask again.")] = False,
) -> None:
    """Show what a run asks of this site and what would leave, then say yes or no to it.

    The answer is to this recipe of this run: another one is asked for anew.
    """
    from fedlora.runtime.client.approvals import Approvals

    folder = opened_site(directory)
    approvals = Approvals(folder.approvals)
    request = approvals.request(run)
    if request is None:
        raise RunError(
            f"Nothing was asked in a run {run!r}: fedlora client runs lists what was. A run asks "
            "with its first round, once it is started at the aggregator."
        )
    _print_request(request, folder)
    verb = "Refuse" if refuse else "Approve"
    if not yes and not typer.confirm(f"\n{verb} run {run}?"):
        typer.echo("Nothing was answered: the run waits as before.")
        return
    answer = approvals.answer(request, yes=not refuse, who=_operator())
    said = "approved" if answer.yes else "refused"
    typer.echo(f"Run {run} is {said} by {answer.who} at {answer.when}.")


def runs(directory: SiteDir = Path()) -> None:
    """List the runs that asked, where each stands, and the last round that this site saw."""
    from rich.console import Console
    from rich.table import Table

    from fedlora.gate.chain import AdapterChain
    from fedlora.runtime.client.approvals import Approvals

    folder = opened_site(directory)
    approvals = Approvals(folder.approvals)
    rounds = AdapterChain(folder.chain).rounds()
    table = Table("run", "asked (UTC)", "state", box=None, header_style="bold", pad_edge=False)
    table.add_column("by")
    table.add_column("rounds seen", justify="right")
    asked = approvals.requests()
    for request, state in asked:
        given = approvals.answers(request.run)
        who = given[-1].who if given and state != "waits" else ""
        seen = rounds.pop(request.run, None)
        table.add_row(request.run, request.asked, state, who, "" if seen is None else str(seen))
    for run, seen in rounds.items():
        table.add_row(run, "", "needs no answer", "", str(seen))
    if not table.row_count:
        typer.echo(f"No run has asked anything of the site in {directory.resolve()}.")
        return
    Console(highlight=False, markup=False).print(table)


def _print_request(request: "Request", folder: "SiteFolder") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from fedlora.runtime.client.configuration import read_site
    from fedlora.runtime.client.summary import summary
    from fedlora.runtime.enrolment import JoinBundle

    lines = summary(
        request, read_site(folder.configuration), aggregator=JoinBundle.read(folder.join).aggregator
    )
    table = Table.grid(padding=(0, 2))
    for label, text in lines:
        table.add_row(Text(label, style="bold"), Text(text, overflow="fold"))
    Console(highlight=False).print(table)


def _operator() -> str:
    """Return who answers: the user that is logged in, also where sudo changed it."""
    import os
    from getpass import getuser

    return os.environ.get("SUDO_USER") or getuser()
