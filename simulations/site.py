"""A site as ``fedlora client start`` runs it, but with another program in place of its trainer.

``python -m simulations.site MODULE DIR``: the module is started as the trainer's is.
"""

import sys
from dataclasses import replace
from pathlib import Path

from fedlora.runtime.client import trainer
from fedlora.runtime.client.folder import SiteFolder
from fedlora.runtime.client.start import services
from fedlora.runtime.processes import log
from fedlora.runtime.processes.service import Service
from fedlora.runtime.processes.supervisor import supervise


def main(module: str, folder: SiteFolder) -> None:
    """Run the site until SIGTERM or SIGINT."""
    log.start("supervisor")

    def replaced() -> list[Service]:
        return [
            replace(
                service,
                command=[module if part == trainer.__name__ else part for part in service.command],
            )
            for service in services(folder)
        ]

    supervise(replaced, folder=folder.path)


if __name__ == "__main__":
    main(sys.argv[1], SiteFolder(Path(sys.argv[2]).resolve()))
