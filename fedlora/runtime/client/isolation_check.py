"""Tries the trainer's isolation: a program that does nothing else is started as the trainer is."""

import os
import socket
import subprocess
import sys
from typing import Literal

from pydantic import ValidationError

from fedlora.errors import RunError
from fedlora.runtime.client import isolation
from fedlora.runtime.client.configuration import SiteConfiguration
from fedlora.runtime.client.folder import SiteFolder
from fedlora.runtime.client.probes import Place, Report
from fedlora.runtime.client.start import readable

_PROGRAM = """
import os, sys
from pathlib import Path
from fedlora.runtime.client.probes import report
for path in sys.argv[2:]:
    if not os.access(path, os.R_OK | os.X_OK * os.path.isdir(path)):
        sys.exit(f"{path}: the user {os.geteuid()} may not read it. Allow it, or set trainer.user.")
print(report(Path(sys.argv[1])).model_dump_json())
"""
_PATIENCE_S = 60


def isolation_found(
    folder: SiteFolder, site: SiteConfiguration
) -> tuple[Literal["ok", "warning"], str]:
    """Return what keeps the trainer from network, keys and other processes, as tried here and now.

    Raises:
        RunError: it cannot be isolated as ``site.yaml`` wants it, or may not read its data.
    """
    if site.trainer.isolation == "none":
        return "warning", "none, by your word in site.yaml: the trainer may reach what its user may"
    report = isolation.compared(_report(folder, site), gate=Place.here(), user=os.geteuid())
    isolation.require(report, site.trainer.isolation)
    return "ok", f"{len(report.probes)} ways out tried as user {report.user}, none open"


def _report(folder: SiteFolder, site: SiteConfiguration) -> Report:
    data = readable(site)
    program = [sys.executable, "-P", "-c", _PROGRAM, str(folder.path.resolve()), *map(str, data)]
    isolation.give_folder(folder, site.trainer.user)
    with socket.socket(socket.AF_UNIX) as listener:
        command = isolation.command(
            program,
            folder=folder,
            user=site.trainer.user,
            readable=data,
            isolation=site.trainer.isolation,
            listener=listener.fileno(),
        )
        done = subprocess.run(
            command,
            pass_fds=[listener.fileno()],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PATIENCE_S,
            check=False,
        )
    try:
        return Report.model_validate_json(done.stdout)
    except ValidationError:
        raise RunError(done.stderr.strip()[-500:] or "The isolated trainer said nothing.") from None
