"""A real deployment on loopback: TLS, node authentication, a process for each part."""

from pathlib import Path

import pytest

from fedlora.cli.simulate import DEMO
from fedlora.recipe import Recipe, read_recipe
from fedlora.release.folder import Release
from fedlora.release.home import target_of
from fedlora.release.pull import Puller
from fedlora.release.registry.callers import Callers, new_token
from fedlora.release.registry_file import RegistryFile
from fedlora.runtime import simulation
from fedlora.runtime.plan import plan
from fedlora.runtime.server.folder import ServerFolder
from simulations.loopback import Loopback
from tests.deployment import wait_until

pytestmark = pytest.mark.slow

SMALLER = ("federation.rounds=2", "federation.local_steps=2", "simulation.compare=false")


def digest(run) -> bytes:
    return (run.release / "adapter_model.safetensors").read_bytes()


def pulled(server: ServerFolder, name: str, path: Path) -> Release:
    """Fetch what the run has published, as a reader does: from the aggregator's own registry."""
    callers, token = Callers.read(server.callers), new_token()
    callers.adding("reader", scope="read", token=token).write(server.callers)
    file = RegistryFile.read(server.registry).model_copy(update={"token": token})
    file.write(path / "registry.yaml")
    source, _ = target_of(path / "registry.yaml")
    puller = Puller(source, file.key, home=path / "home")
    wait_until(lambda: "production" in puller.index(name).aliases)
    return puller.pull(f"{name}@production")


def two_sites(*overrides: str) -> Recipe:
    """Return the demo for two of its sites, and one round."""
    recipe = read_recipe(DEMO, overrides=(*SMALLER, "federation.rounds=1", *overrides))
    kept = [dataset for dataset in recipe.datasets if dataset.site in {"gui", "net"}]
    values = recipe.model_dump(mode="json", exclude={"lock"})
    values["datasets"] = [dataset.model_dump(mode="json") for dataset in kept]
    values["federation"] |= {"sites": None}
    return Recipe.model_validate(values)


def test_a_deployment_goes_on_from_a_release(tmp_path):
    """The aggregator has no base and the sites no release: the lock says what it begins with."""
    first = simulation.start(plan(two_sites()), runs=tmp_path / "runs")
    simulation.simulate(first, observe=lambda _: None)
    recipe = two_sites(f"init_from={first.release}")
    simulated = simulation.start(plan(recipe), runs=tmp_path / "runs")
    simulation.simulate(simulated, observe=lambda _: None)
    with Loopback(tmp_path / "deployment", recipe) as deployment:
        run = deployment.run()
    assert [r["refused"] for r in run.records()] == [{}, {}]
    assert digest(run) == digest(simulated) != digest(first)


def test_a_deployment_gives_the_very_adapter_of_the_simulation(tmp_path):
    """Three sites in processes and folders of their own, the demo's data and seeds: equal bits.

    The aggregator publishes it by itself, and its registry hands it out.
    """
    recipe = read_recipe(DEMO, overrides=SMALLER)
    kept = tuple(dataset for dataset in recipe.datasets if dataset.site != "build")
    values = recipe.model_dump(mode="json", exclude={"lock"})
    values["datasets"] = [dataset.model_dump(mode="json") for dataset in kept]
    values["federation"] |= {"sites": None}
    recipe = type(recipe).model_validate(values)
    simulated = simulation.start(plan(recipe), runs=tmp_path / "runs")
    simulation.simulate(simulated, observe=lambda _: None)
    with Loopback(tmp_path / "deployment", recipe) as deployment:
        run = deployment.run()
        release = pulled(deployment.server, recipe.name, tmp_path)
    assert [r["refused"] for r in run.records()] == [{}, {}, {}]
    assert digest(run) == digest(simulated)
    weights = release.folder / "adapter_model.safetensors"
    assert weights.read_bytes() == digest(simulated)
    assert release.manifest.cohort.sites is not None
    assert len(release.manifest.cohort.sites) == 3
