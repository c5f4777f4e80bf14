"""``fedlora server start|run|status|stop|resume``: the aggregator at work."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedlora.cli.arguments import ServerDir, recipe_of
from fedlora.errors import RunError

if TYPE_CHECKING:
    from fedlora.runtime.run_folder import RunFolder
    from fedlora.runtime.server.folder import ServerFolder
    from fedlora.runtime.server.runs import Runs

Run = Annotated[str, typer.Argument(metavar="RUN", help="Its name, as status lists it.")]


def start(folder: ServerDir = Path()) -> None:
    """Run the aggregator: SuperLink, front and coordinator, until Ctrl-C or SIGTERM.

    What dies is started again. Runs that were under way go on.
    """
    from fedlora.runtime.server.start import start as run_all

    run_all(opened(folder))


def run(
    arguments: Annotated[list[str], typer.Argument(metavar="RECIPE [KEY=VALUE]...")],
    folder: ServerDir = Path(),
) -> None:
    """Begin a run of a locked recipe; the coordinator plays it when its turn comes."""
    begun = _runs(folder).begin(recipe_of(arguments))
    typer.echo(f"{begun.name}\nIt is played when its turn comes: fedlora server status")


def stop(name: Run, folder: ServerDir = Path()) -> None:
    """Stop a run after the message under way; resume goes on from its last round."""
    runs = _runs(folder)
    known = runs.open(name)
    _require_unfinished(runs, known)
    runs.want(known, "stopped")
    typer.echo(f"{name} stops. Go on with: fedlora server resume {name}")


def resume(name: Run, folder: ServerDir = Path()) -> None:
    """Let a run go on that was stopped, or that pauses, now rather than when it is due."""
    runs = _runs(folder)
    known = runs.open(name)
    _require_unfinished(runs, known)
    runs.want(known, "playing")
    typer.echo(f"{name} goes on when its turn comes: fedlora server status")


def status(folder: ServerDir = Path()) -> None:
    """Show the aggregator's processes, sites and runs. Exits with 1 unless all processes run."""
    from fedlora.cli.server_status import print_status

    if not print_status(opened(folder)):
        raise typer.Exit(1)


def opened(path: Path) -> "ServerFolder":
    """Return an aggregator's folder, once it is known to be one."""
    from fedlora.runtime.server.configuration import Configuration
    from fedlora.runtime.server.folder import ServerFolder

    folder = ServerFolder(path.resolve())
    Configuration.read(folder.configuration)
    return folder


def _require_unfinished(runs: "Runs", run: "RunFolder") -> None:
    if runs.standing(run).state == "finished":
        raise RunError(f"{run.name} is finished: {run.release} holds what it published.")


def _runs(path: Path) -> "Runs":
    from fedlora.runtime.server.runs import Runs

    return Runs(opened(path).runs)
