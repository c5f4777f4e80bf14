"""The same rounds on Flower's Ray simulation: many processes, GPUs or machines."""

import importlib.util
import logging
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp

from fedlora.errors import RunError
from fedlora.runtime.aggregator.server import serve
from fedlora.runtime.events import Observer
from fedlora.runtime.run_folder import RunFolder
from fedlora.runtime.site.client import app as client_app


def run_on_ray(run: RunFolder, *, observe: Observer) -> None:
    """Play the run's rounds with the clients in Ray's worker processes.

    Raises:
        RunError: Ray is not installed, or the simulation failed.
        FedloraError: as ``serve``.
    """
    if importlib.util.find_spec("ray") is None:
        raise RunError(
            "The engine 'ray' needs Ray, which is not installed: pip install 'fedlora[ray]'."
        )
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # it warns without
    from flwr.simulation import run_simulation

    server_app, stopped = ServerApp(), threading.Event()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:  # noqa: ARG001 - Flower's interface
        _stop_with(stopped, grid)
        serve(grid, run.path, observe=observe)

    logging.getLogger("flwr").setLevel(logging.CRITICAL)  # what fails is raised, and told once
    with _interrupt_sets(stopped):
        run_simulation(
            server_app=server_app,
            client_app=client_app,
            num_supernodes=len(run.recipe().site_names),
            backend_config={"init_args": {"log_to_driver": False}},
        )


def _stop_with(stopped: threading.Event, grid: Grid) -> None:
    """Make the grid end the rounds once ``stopped`` is set.

    Flower plays them in a thread of its own, to which a worker process that dies of Ctrl-C looks
    like a client that failed.
    """
    pull = grid.pull_messages

    def pull_messages(message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(pull(message_ids))
        if stopped.is_set():
            raise RunError("The run was stopped.")
        return replies

    grid.pull_messages = pull_messages  # type: ignore[method-assign]  # this grid is ours alone


@contextmanager
def _interrupt_sets(stopped: threading.Event) -> Iterator[None]:
    """Set ``stopped`` on Ctrl-C before anything else learns of it."""

    def interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - signal's interface
        stopped.set()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
