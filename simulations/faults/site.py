"""A site as ``fedlora client start`` runs it, but with the one-hot trainer and a clock of its own.

``python -m simulations.faults.site DIR``; the clock can be put wrong where there is a C compiler.
"""

import struct
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from shutil import which

import fedlora
from fedlora.runtime.client.folder import SiteFolder
from fedlora.runtime.client.start import services
from fedlora.runtime.processes.service import Service
from fedlora.runtime.processes.supervisor import supervise

_CLOCK = "clock.so"
_SKEW = struct.Struct("<q")


def make_clock(folder: Path) -> bool:
    """Put a clock beside a site's folder that can be set wrong; return whether that can be."""
    compiler = which("cc")
    if compiler is None:
        return False
    set_clock(folder, seconds=0)
    source, built = Path(__file__).with_name("clock.c"), folder.parent / _CLOCK
    if not built.exists():
        subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", built, source], check=True)
    return True


def set_clock(folder: Path, *, seconds: float) -> None:
    """Put the clock of a site's processes wrong, by so many seconds, at once."""
    path = _skew(folder)
    with path.open("r+b" if path.exists() else "wb") as file:  # in place: processes have it mapped
        file.write(_SKEW.pack(int(seconds * 1e9)))


def main(folder: SiteFolder) -> None:
    """Run the site's processes until SIGTERM."""
    program = [sys.executable, "-P", "-m", "simulations.faults.one_hot", str(folder.path)]

    def replaced() -> list[Service]:
        started = [_with_clock(service, folder.path) for service in services(folder)]
        return [replace(s, command=program) if s.name == "trainer" else s for s in started]

    supervise(replaced, folder=folder.path)


def _with_clock(service: Service, folder: Path) -> Service:
    clock = folder.parent / _CLOCK
    here = {"PYTHONPATH": str(Path(fedlora.__file__).resolve().parents[1])}
    skewed: Mapping[str, str] = {}
    if clock.exists():
        skewed = {"LD_PRELOAD": str(clock), "CLOCK_SKEW": str(_skew(folder))}
    return replace(service, environment={**service.environment, **here, **skewed})


def _skew(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.skew")


if __name__ == "__main__":
    main(SiteFolder(Path(sys.argv[1])))
