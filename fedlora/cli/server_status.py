"""What ``fedlora server status`` prints: processes, sites, runs."""

import time
from datetime import datetime
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from fedlora.cli.services import print_services
from fedlora.errors import RunError

if TYPE_CHECKING:
    from fedlora.runtime.run_folder import RunFolder
    from fedlora.runtime.server.folder import ServerFolder
    from fedlora.runtime.server.runs import Runs


def print_status(folder: "ServerFolder") -> bool:
    """Print how the aggregator is; return whether all of its processes run."""
    from fedlora.runtime.server.runs import Runs

    console = Console(highlight=False, markup=False, soft_wrap=True)
    running = print_services(folder.path, console=console)
    console.print()
    _print_sites(folder, console, running=running)
    runs = Runs(folder.runs)
    table = Table("run", "state", "since", box=None, header_style="bold", pad_edge=False)
    table.add_column("round", justify="right")
    table.add_column("held-out loss", justify="right")
    reasons = []
    for run in runs.all():
        standing = runs.standing(run)
        since = datetime.fromtimestamp(standing.since).astimezone() if standing.since else None
        table.add_row(
            run.name,
            standing.state,
            f"{since:%Y-%m-%d %H:%M:%S}" if since else "",
            f"{max(0, len(run.records()) - 1)} of {run.recipe().federation.rounds}",
            _loss(run),
        )
        reasons += _reason(run, runs)
    console.print()
    console.print(table if runs.all() else "No runs yet: fedlora server run RECIPE")
    for reason in reasons:
        console.print(f"\n{reason}")
    return running


def _print_sites(folder: "ServerFolder", console: Console, *, running: bool) -> None:
    from fedlora.runtime.server.control import Control
    from fedlora.runtime.server.directory import Directory

    nodes = {}
    if running:
        try:
            with Control(folder) as control:
                nodes = dict(control.nodes())
        except RunError as error:
            console.print(str(error))
    table = Table("site", "state", "connection", box=None, header_style="bold", pad_edge=False)
    for entry in Directory(folder).entries():
        connection = nodes.get(entry.node_id, "") if entry.node_id is not None else ""
        table.add_row(entry.site, entry.state, connection)
    console.print(table)


def _loss(run: "RunFolder") -> str:
    """Return the mean held-out loss per token over the sites of the last round that measured it."""
    for record in reversed(run.records()):
        sums = list(record.get("evaluation", {}).values())
        tokens = sum(count for _, count in sums)
        if tokens:
            return f"{sum(total for total, _ in sums) / tokens:.3f}"
    return ""


def _reason(run: "RunFolder", runs: "Runs") -> list[str]:
    standing = runs.standing(run)
    if standing.state == "playing" and standing.reason:
        return [f"{run.name} waits for answers:\n{standing.reason}"]
    if standing.state != "paused":
        return []
    again = max(0, standing.again - time.time())
    return [f"{run.name} pauses and is tried again in {again:.0f} s:\n{standing.reason}"]
