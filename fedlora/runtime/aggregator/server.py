"""What the aggregator's Flower app does: play a run folder's rounds, draft the release."""

from pathlib import Path

from flwr.serverapp import Grid

from fedlora.runtime.aggregator.directory import Directory
from fedlora.runtime.aggregator.strategy import FederatedLora
from fedlora.runtime.aggregator.tracked import tracked
from fedlora.runtime.events import Observer
from fedlora.runtime.publishing import draft
from fedlora.runtime.run_folder import RunFolder


def serve(
    grid: Grid, folder: Path, *, observe: Observer, directory: Directory | None = None
) -> None:
    """Play the rounds that the run at ``folder`` still lacks, then write its unsigned release.

    Where factors are personal there is no adapter for all: each site has its own.

    Args:
        grid: carries the messages.
        folder: of the run.
        observe: is told what happens.
        directory: who the nodes are, where they authenticate themselves.

    Raises:
        FedloraError: the run cannot go on; it can be resumed with this same call.
    """
    run = RunFolder.open(folder)
    with tracked(run, observe) as observing:
        FederatedLora(run, grid, observe=observing, directory=directory).start(grid)
    if not run.recipe().federation.facts.personal:
        draft(run, run.release)
