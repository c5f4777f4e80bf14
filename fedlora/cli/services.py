"""The table of a host's processes, which its supervisor tells of."""

import time
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table


def print_services(folder: Path, *, console: Console) -> bool:
    """Print how each process of a folder's supervisor is; return whether all of them run."""
    from fedlora.runtime.processes.service_state import Supervision
    from fedlora.runtime.processes.supervisor import services_file

    told = Supervision.read(services_file(folder))
    if told is None or not told.supervisor.alive:
        console.print("not running")
        return False
    table = Table("process", "state", "since", box=None, header_style="bold", pad_edge=False)
    table.add_column("restarts", justify="right")
    table.add_column("last exit")
    for service in told.services:
        state: str = service.state
        if service.retry_at is not None and state == "waiting":
            state = f"starts again in {max(0, service.retry_at - time.time()):.0f} s"
        since = datetime.fromtimestamp(service.since).astimezone()
        table.add_row(
            service.name,
            state,
            f"{since:%Y-%m-%d %H:%M:%S}",
            str(service.restarts),
            service.last_exit,
        )
    console.print(table)
    return all(service.state == "running" for service in told.services)
