"""The same rounds on Flower's Ray simulation: many processes, GPUs or machines."""

import importlib.util
import logging
import os

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedlora.errors import RunError
from fedlora.runtime.client import app as client_app
from fedlora.runtime.events import Observer
from fedlora.runtime.run_folder import RunFolder
from fedlora.runtime.server import serve


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
    from flwr.simulation import run_simulation

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # it warns without
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:  # noqa: ARG001 - Flower's interface
        serve(grid, run.path, observe=observe)

    logging.getLogger("flwr").setLevel(logging.ERROR)
    run_simulation(
        server_app=server_app,
        client_app=client_app,
        num_supernodes=len(run.recipe().site_names),
        backend_config={"init_args": {"log_to_driver": False}},
    )
