"""A whole run on one machine: plan, rounds, baselines, release and report."""

from pathlib import Path

from fedlora.recipe import Recipe
from fedlora.runtime.client import app
from fedlora.runtime.comparison import train_baselines
from fedlora.runtime.events import Observer
from fedlora.runtime.in_process import InProcessGrid
from fedlora.runtime.plan import Plan
from fedlora.runtime.ray_engine import run_on_ray
from fedlora.runtime.report import write_report
from fedlora.runtime.run_folder import RunFolder
from fedlora.runtime.server import serve


def start(plan: Plan, *, runs: Path) -> RunFolder:
    """Make the run folder of a planned run.

    Raises:
        StorageError: the folder cannot be written.
    """
    return RunFolder.create(plan.recipe, plan.base.spec, runs=runs)


def simulate(run: RunFolder, *, observe: Observer) -> None:
    """Do what the run still lacks; a run that was stopped goes on where it was.

    Raises:
        FedloraError: the run cannot go on; what is complete stays, and this call resumes it.
    """
    recipe: Recipe = run.recipe()
    if recipe.simulation.engine == "ray":
        run_on_ray(run, observe=observe)
    else:
        serve(InProcessGrid(app, clients=len(recipe.site_names)), run.path, observe=observe)
    if recipe.simulation.compare:
        train_baselines(run, observe=observe)
    write_report(run)
