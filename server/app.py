"""The aggregator's Flower app: wiring only; ``fedlora.runtime.aggregator.server`` does the work."""

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedlora.runtime.aggregator.server import serve
from fedlora.runtime.events import log_event

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Play the run whose folder the run configuration names."""
    serve(grid, Path(str(context.run_config["run"])), observe=log_event)
