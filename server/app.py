"""The aggregator's Flower app: wiring only, what it does is in ``fedlora.runtime.server``."""

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedlora.runtime.events import log_event
from fedlora.runtime.server import serve

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Play the run whose folder the run configuration names."""
    serve(grid, Path(str(context.run_config["run"])), observe=log_event)
