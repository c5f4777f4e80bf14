"""A real deployment on loopback: TLS, node authentication, a process for each part."""

import pytest

from fedlora.cli.simulate import DEMO
from fedlora.recipe import read_recipe
from fedlora.runtime import simulation
from fedlora.runtime.plan import plan
from simulations.loopback import Loopback

pytestmark = pytest.mark.slow

SMALLER = ("federation.rounds=2", "federation.local_steps=2", "simulation.compare=false")


def digest(run) -> bytes:
    return (run.release / "adapter_model.safetensors").read_bytes()


def test_a_deployment_gives_the_very_adapter_of_the_simulation(tmp_path):
    """Three sites in processes and folders of their own, the demo's data and seeds: equal bits."""
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
    assert [r["refused"] for r in run.records()] == [{}, {}, {}]
    assert digest(run) == digest(simulated)
