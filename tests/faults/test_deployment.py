"""Kills in a real deployment: each round goes on by itself or with one command, and counts once.

The trainer's work alone is made up (``simulations.faults.one_hot``), so that each update can be
told from each other in the global adapter. ``campaigns faults`` has many more faults and moments.
"""

import time
from collections.abc import Iterator

import pytest

from fedlora.gate.evidence.entries import Decided
from fedlora.runtime.client.folder import SiteFolder
from simulations.faults.checks import problems, verified
from simulations.faults.one_hot import recipe
from simulations.faults.scene import Scene

pytestmark = pytest.mark.slow

AFTER = 2
"""The round that a fault hit, and the one after it."""


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Iterator[Scene]:
    with Scene(tmp_path_factory.mktemp("faults"), recipe(rounds=6)) as scene:
        scene.deployment.wait(lambda: scene.rounds() >= 1)
        yield scene


def require_survived(scene: Scene, *, before: int) -> None:
    """Wait for further rounds; then nothing is lost, counted twice, refused, or not on record."""
    scene.deployment.wait(lambda: scene.rounds() >= before + AFTER)
    assert problems(scene) == {}


def wait_for_work(scene: Scene, site: str) -> None:
    """Wait until a site's gate has asked its trainer, which takes half a second."""
    folder = SiteFolder(scene.sites[site])
    deadline = time.monotonic() + 60
    while not isinstance(verified(folder).entries[-1].entry, Decided):
        assert time.monotonic() < deadline, "the site is not asked"
        time.sleep(0.05)


def test_a_coordinator_that_is_killed_while_sites_work(scene):
    """Its successor ends the Flower run and asks anew; sites answer what they answered before."""
    before = scene.rounds()
    wait_for_work(scene, "north")
    scene.kill(scene.server, "coordinator")
    require_survived(scene, before=before)


def test_a_gate_that_is_killed_while_its_trainer_works(scene):
    """The SuperNode is started anew with it, and is asked anew."""
    before = scene.rounds()
    wait_for_work(scene, "east")
    scene.kill(scene.sites["east"], "gate")
    require_survived(scene, before=before)


def test_a_supernode_that_is_killed_with_a_question_in_memory(scene):
    """SuperLink takes its successor at once, and the question is asked anew."""
    before = scene.rounds()
    wait_for_work(scene, "west")
    scene.kill(scene.sites["west"], "supernode")
    require_survived(scene, before=before)


def test_a_superlink_that_is_killed(scene):
    """It goes on from its database; coordinator and sites wait for it."""
    before = scene.rounds()
    wait_for_work(scene, "north")
    scene.kill(scene.server, "superlink")
    require_survived(scene, before=before)


def test_an_aggregator_whose_host_loses_power(scene):
    """Started again by its one command, it goes on from the last checkpoint and its spool."""
    before = scene.rounds()
    wait_for_work(scene, "north")
    scene.kill_host(scene.server, pause=1)
    require_survived(scene, before=before)
