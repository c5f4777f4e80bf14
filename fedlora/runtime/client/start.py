"""The processes of a site, supervised: SuperNode, trainer and gate."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import fedlora
from fedlora import atomic
from fedlora.errors import EnrolmentError
from fedlora.runtime.client import isolation
from fedlora.runtime.client.configuration import SiteConfiguration, read_site
from fedlora.runtime.client.folder import SiteFolder
from fedlora.runtime.client.supernode import supernode
from fedlora.runtime.enrolment import JoinBundle
from fedlora.runtime.processes.service import Service
from fedlora.runtime.processes.supervisor import supervise
from fedlora.runtime.trackers import require_installed
from fedlora.sections import EMBEDDED, STANDARD_LIBRARY

_LISTENER = 3
"""Descriptor as which a service gets its socket."""
_KEPT = ("LANG", "LC_ALL", "PATH", "TZ", "OMP_NUM_THREADS")


def start(folder: SiteFolder) -> None:
    """Run a site's client until SIGTERM or SIGINT.

    Raises:
        PolicyError: there is no policy; or ``site.yaml`` is wrong.
        EnrolmentError: the site has not enrolled, or as another than ``site.yaml`` says.
        RunError: another supervisor has the folder, or the trainer cannot be isolated.
        StorageError: the folder cannot be written.
    """
    supervise(lambda: services(folder), folder=folder.path)


def services(folder: SiteFolder) -> Sequence[Service]:
    """Return a site's processes in the order of their start; the gate is the first to stop.

    Raises:
        PolicyError: there is no policy; or ``site.yaml`` is wrong.
        EnrolmentError: the site has not enrolled, or as another than ``site.yaml`` says.
        RunError: the trainer cannot be isolated, or a tracker is not installed.
        StorageError: the folder cannot be written.
    """
    site = read_site(folder.configuration)
    require_enrolled(folder, site)
    require_installed(site.trackers)
    owner = _owner(folder)
    for path in (folder.run, folder.logs, folder.gate):
        with atomic.storage_errors(path):
            path.mkdir(mode=0o700, exist_ok=True)
            if owner:
                os.chown(path, *owner, follow_symlinks=False)
    return [supernode(folder, user=owner), _trainer(folder, site, owner), _gate(folder, owner)]


def require_enrolled(folder: SiteFolder, site: SiteConfiguration) -> JoinBundle:
    """Return the bundle that the site enrolled with.

    Raises:
        EnrolmentError: there is none, or it is another site's.
    """
    if not folder.join.exists():
        raise EnrolmentError(
            f"{folder.path}: this site has not enrolled. Run fedlora client enroll BUNDLE --dir "
            f"{folder.path} with the join bundle that the aggregator's operator sent."
        )
    join = JoinBundle.read(folder.join)
    if join.site != site.site:
        raise EnrolmentError(
            f"{folder.configuration}: site is {site.site}, but it enrolled as {join.site}. "
            f"Write site: {join.site}."
        )
    return join


def readable(site: SiteConfiguration) -> Sequence[Path]:
    """Return the files and folders that the trainer is to read: data, public text, base model."""
    sources = [*site.data, *([site.public_text] if site.public_text else [])]
    named = [source.path for source in sources if source.path != STANDARD_LIBRARY]
    if site.base_model not in (None, EMBEDDED):
        named.append(str(site.base_model))
    return [Path(path) for path in named]


def trainer_command(folder: SiteFolder, site: SiteConfiguration) -> Sequence[str]:
    """Return how the trainer is started.

    Raises:
        RunError: it cannot be isolated as ``site.yaml`` wants it.
    """
    return isolation.command(
        isolation.trainer(folder),
        folder=folder,
        user=site.trainer.user,
        readable=readable(site),
        isolation=site.trainer.isolation,
        listener=_LISTENER,
    )


def _trainer(folder: SiteFolder, site: SiteConfiguration, owner: tuple[int, int] | None) -> Service:
    """Return the trainer; if isolated, what isolates it drops its rights, and root's are needed."""
    isolated = site.trainer.isolation == "required"
    command = trainer_command(folder, site)
    user = site.trainer.user if isolated else (owner[0] if owner else os.geteuid())
    isolation.give_folder(folder, user)
    return Service(
        name="trainer",
        command=command,
        environment=_environment(),
        user=None if isolated else owner,
        listen=folder.trainer_socket,
    )


def _gate(folder: SiteFolder, owner: tuple[int, int] | None) -> Service:
    program = (
        sys.executable,
        "-P",
        "-m",
        "fedlora.runtime.client.gate",
        str(folder.path.resolve()),
    )
    return Service(
        name="gate",
        command=program,
        environment=_environment(),
        user=owner,
        # it waits for ever for the rest of an answer of which it has the beginning
        takes_along=("supernode",),
    )


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    package = Path(fedlora.__file__).resolve().parents[1]
    return kept | {"PYTHONPATH": str(package), "PYTHONUNBUFFERED": "1"}


def _owner(folder: SiteFolder) -> tuple[int, int] | None:
    """Return whom SuperNode and gate run as; none if that is who starts them."""
    owner = folder.path.stat()
    return (owner.st_uid, owner.st_gid) if os.geteuid() == 0 != owner.st_uid else None
