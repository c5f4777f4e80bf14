"""Secure sums of a real deployment on loopback, whose sites know each other by pinned keys."""

from collections.abc import Callable

import pytest

from fedlora.gate.evidence.entries import Released
from fedlora.gate.evidence.log import EvidenceLog
from fedlora.recipe import Recipe
from fedlora.runtime import simulation
from fedlora.runtime.client.folder import SiteFolder
from fedlora.runtime.plan import plan
from fedlora.runtime.run_folder import RunFolder
from fedlora.signing import Signer
from simulations.loopback import Loopback

pytestmark = pytest.mark.slow

SECURE = "privacy={unit: none, secure_aggregation: true}"
SAID_OF_PEERS = "The site has no pin of another in the cohort"


@pytest.fixture
def recipe_of(small_recipe, sites) -> Callable[..., Recipe]:
    """Return a recipe of sites named by letters."""

    def make(names: str, *overrides: str) -> Recipe:
        files = [sites["north"], sites["south"]]
        datasets = ", ".join(
            f"{{path: {files[place % 2]}, site: {name}}}" for place, name in enumerate(names)
        )
        return small_recipe(
            f"datasets=[{datasets}]",
            "federation.method=freeze-a",
            "federation.evaluate_every=0",
            "federation.rounds=2",
            "wire.codec=fp32",
            *overrides,
        )

    return make


def weights(run: RunFolder) -> bytes:
    return (run.release / "adapter_model.safetensors").read_bytes()


def released(folder: SiteFolder) -> list[str]:
    """Return what has left a site, by the evidence log of its gate."""
    signer = Signer.load(folder.gate_key)
    log = EvidenceLog(folder.evidence, site=folder.path.name, signer=signer)
    return [each.entry.purpose for each in log.entries() if isinstance(each.entry, Released)]


def pin(deployment: Loopback, *, unknown: str = "") -> None:
    """Let all sites know all others but one."""
    for name in deployment.sites:
        deployment.pin(name, deployment.sites.keys() - {name, unknown})


def test_a_deployment_gives_the_very_adapter_of_the_simulation(recipe_of, tmp_path):
    """What the gates mask and the aggregator sums is, to the bit, what a simulation sums.

    That is the plain run's to the bound that the record says (``test_secure_sum``).
    """
    recipe = recipe_of("abc", SECURE)
    simulated = simulation.start(plan(recipe), runs=tmp_path / "runs")
    simulation.simulate(simulated, observe=lambda _: None)
    with Loopback(tmp_path / "deployment", recipe) as deployment:
        pin(deployment)
        run = deployment.run()
    records, expected = run.records(), simulated.records()
    assert [record["refused"] for record in records] == [{}, {}, {}]
    for mine, theirs in zip(records[1:], expected[1:], strict=True):
        assert list(mine["folded"]) == list("abc")
        assert mine["secure_sum"]["error_bound"] == theirs["secure_sum"]["error_bound"]
    assert weights(run) == weights(simulated)
    stages = ["train", "train.share", "train.mask", "train.sign", "train.reveal"]
    for site in deployment.sites.values():
        assert released(site) == 2 * stages


def test_who_is_not_pinned_is_in_no_sum_with_those_who_do_not_know_it(recipe_of, tmp_path):
    """A run that too few can join says why and waits; once enough have pinned, it goes on.

    Who has still not pinned the stranger is left out, and names it in the log of its own gate.
    """
    recipe = recipe_of("abcd", SECURE, "federation.rounds=1")
    with Loopback(tmp_path / "deployment", recipe) as deployment:
        pin(deployment, unknown="d")
        run = deployment.runs.begin(deployment.recipe)
        deployment.wait(lambda: deployment.standing(run).state == "paused")
        reason = deployment.standing(run).reason
        before = {name: released(site) for name, site in deployment.sites.items()}
        for name in "bc":
            deployment.pin(name, "d")
        deployment.finish(run)
        log = (deployment.sites["a"].logs / "gate.log").read_text()
        after = released(deployment.sites["a"])
    assert "1 members have shared their secrets, but at least 3 must" in reason
    assert "Nothing was revealed" in reason
    for name in "abc":
        assert f"{name}: lost in the secure sum, stage share: {SAID_OF_PEERS}" in reason
        assert set(before[name]) == {"train"}
    record = run.records()[-1]
    assert list(record["folded"]) == list("bcd")
    assert record["refused"].keys() == {"a"}
    assert SAID_OF_PEERS in record["refused"]["a"]
    assert "Site 'd' is not pinned" in log
    assert set(after) == {"train"}
