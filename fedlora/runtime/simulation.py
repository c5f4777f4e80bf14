"""A whole run on one machine: rounds, baselines and report, begun or gone on with."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from fedlora import atomic
from fedlora.errors import RunError
from fedlora.runtime.aggregator.server import serve
from fedlora.runtime.carriers.in_process import InProcessGrid
from fedlora.runtime.carriers.ray_engine import run_on_ray
from fedlora.runtime.comparison import train_baselines
from fedlora.runtime.events import Observer
from fedlora.runtime.lock import locked
from fedlora.runtime.plan import Plan, plan
from fedlora.runtime.publishing import draft_personal
from fedlora.runtime.reports.report import write_report
from fedlora.runtime.run_folder import RunFolder
from fedlora.runtime.site.client import app
from fedlora.runtime.site.memory import FOLDER, SIMULATED, SiteMemory
from fedlora.runtime.site.personal import with_personal


def start(planned: Plan, *, runs: Path) -> RunFolder:
    """Make the run folder of a planned run.

    Raises:
        StorageError: the folder cannot be written.
    """
    base = planned.base
    recipe = locked(planned.recipe, base.spec, base.digests)
    return RunFolder.create(recipe, base.spec, data=_data(planned), runs=runs)


def resume(path: Path) -> RunFolder:
    """Return a run that was stopped, when its base model and data are still those it began with.

    Under privacy nothing is known of the data it began with: each row of a site's ledger has a
    keyed digest of those that it was charged for.

    Raises:
        RunError: there is no run, or its base model or data have changed.
        DataError: a dataset has gone.
        BaseModelError: the base model has gone.
    """
    run = RunFolder.open(path)
    now, then = plan(run.recipe()), run.data()
    if now.base.spec.digest != run.spec().digest:
        raise RunError(
            f"{path}: the base model {now.recipe.base_model} is not the one that the run began "
            "with. Put that one back, or start a new run."
        )
    changed = [name for name, digest in _data(now).items() if then.get(name) != digest]
    if changed:
        raise RunError(
            f"{path}: the data of {', '.join(changed)} has changed since the run began (for the "
            "standard library: another Python). Put it back, or start a new run."
        )
    return run


def _data(planned: Plan) -> Mapping[str, str]:
    """Return a digest of each site's rows; none under privacy, where it could tell of them."""
    if planned.recipe.privacy.unit != "none":
        return {}
    return {site.name: site.digest for site in planned.sites}


def simulate(run: RunFolder, *, observe: Observer, apart: bool = False) -> None:
    """Do what the run still lacks.

    Args:
        run: the run.
        observe: is told what happens.
        apart: let sites remember nothing beyond the run, even if the user names a folder for them.

    Raises:
        FedloraError: the run cannot go on; what is complete stays, and this call resumes it.
    """
    own = str(run.path / "sites")
    with sites_in(own if apart else os.environ.get(FOLDER, own)):
        _simulate(run, observe=observe)
    write_report(run)


@contextmanager
def sites_in(folder: str) -> Iterator[None]:
    """Let simulated sites keep what they must remember in a folder."""
    named = os.environ.get(FOLDER)
    os.environ.update({FOLDER: folder, SIMULATED: "1"})
    try:
        yield
    finally:
        del os.environ[SIMULATED], os.environ[FOLDER]
        if named is not None:
            os.environ[FOLDER] = named


def _simulate(run: RunFolder, *, observe: Observer) -> None:
    recipe = run.recipe()
    if not run.is_published:
        if recipe.simulation.engine == "ray":
            run_on_ray(run, observe=observe)
        else:
            grid = InProcessGrid(app, clients=len(recipe.site_names))
            serve(grid, run.path, observe=observe)
    if not run.is_published:
        _publish_personal(run)
    if recipe.simulation.compare:
        train_baselines(run, observe=observe)


def _publish_personal(run: RunFolder) -> None:
    """Publish what each site that trained has: the global adapter with its personal factors."""
    recipe, checkpoint = run.recipe(), run.load()
    with atomic.new_folder(run.release) as folder:
        for name in recipe.site_names:
            memory = SiteMemory(name, run.name)
            state = with_personal(checkpoint.adapter, recipe, memory, before=checkpoint.round + 1)
            if state is not checkpoint.adapter:  # others have none: their B is still zero
                draft_personal(run, state, folder / name, site=name)
