"""Runs that publish while they are played: aliases, gates, and what a failing store cannot do."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from fedlora.errors import InspectionError
from fedlora.privacy.accounting.renyi_filter import RenyiFilter
from fedlora.privacy.ledger import Ledger
from fedlora.release.folder import verify
from fedlora.release.index import Index
from fedlora.release.manifest import Manifest
from fedlora.release.store import Store, new_store
from fedlora.runtime import simulation
from fedlora.runtime.events import Event, PublicationFailed, ReleasePublished, RoundFinished
from fedlora.runtime.plan import plan
from fedlora.runtime.publication import Publication, publish_run
from fedlora.runtime.run_folder import RunFolder
from fedlora.runtime.server.coordinator import Coordinator
from fedlora.runtime.server.folder import ServerFolder
from fedlora.signing import PublicKey
from fedlora.training.base_model import resolve
from simulations.published import Scene

EACH = ("publish.every=1", "federation.rounds=2", "federation.local_steps=4")


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """A store and its publisher."""
    return Scene.new(tmp_path / "publisher")


@pytest.fixture
def general(tmp_path: Path) -> Path:
    """A public text."""
    path = tmp_path / "general.txt"
    path.write_text("The sun rises in the east.\n\nWater is wet, and the sky is blue.", "utf-8")
    return path


def play(recipe, folder: Path, scene: Scene, *, target=None) -> tuple[RunFolder, list[Event]]:
    """Return a run that was played and published, and what was told of its releases."""
    told: list[Event] = []
    run = simulation.start(plan(recipe), runs=folder)
    publication = Publication(run, scene.publisher_at(target or scene.store), told.append)
    simulation.simulate(run, observe=publication.begin())
    return run, [each for each in told if isinstance(each, ReleasePublished | PublicationFailed)]


def index_of(scene: Scene) -> Index:
    return scene.publisher.index("small")


def manifest_of(scene: Scene, release: str) -> Manifest:
    return verify(scene.store.path / "releases" / release, key=scene.signer.public).manifest


def test_each_release_is_published_and_the_better_promoted(small_recipe, tmp_path, scene):
    """``candidate`` and ``production`` follow; each release names what it was held against."""
    run, (first, second) = play(small_recipe(*EACH), tmp_path / "runs", scene)
    index = index_of(scene)
    assert set(index.releases) == {first.release, second.release}
    assert index.target("candidate") == index.target("production") == second.release
    assert (first.promoted, second.promoted) == ("production", "production")
    parents = [manifest_of(scene, each.release).origin.parent for each in (first, second)]
    assert parents == [None, first.release]
    lines = [json.loads(line) for line in run.releases.read_text().splitlines()]
    assert [line["release"] for line in lines] == [first.release, second.release]
    assert not list(run.path.glob(".release-*"))


def test_a_release_that_does_not_hold_stays_a_candidate(small_recipe, tmp_path, scene, general):
    """The reason is on record; what is in production stays there."""
    text = f"publish.forgetting={{path: {general}, margin: 0}}"
    _, (good,) = play(small_recipe("federation.rounds=1"), tmp_path / "runs", scene)
    run, (bad,) = play(small_recipe(*EACH[1:], text), tmp_path / "runs", scene)
    (reason,) = bad.held_back
    assert reason.startswith("publish.forgetting: the loss on the public text is")
    index = index_of(scene)
    assert index.target("candidate") == bad.release
    assert index.target("production") == good.release
    assert (good.promoted, bad.promoted) == ("production", None)
    (line,) = run.releases.read_text().splitlines()
    assert json.loads(line)["held_back"] == [reason]


class Broken:
    """A target that fails, with whatever error, as often as it is told to."""

    def __init__(self, scene: Scene, error: Exception, *, times: int) -> None:
        self.store, self.error, self.left = scene.store, error, times

    def __getattr__(self, name: str) -> object:
        return getattr(self.store, name)

    def publish(self, folder: Path, envelope: bytes) -> None:
        self.left -= 1
        if self.left >= 0:
            raise self.error
        self.store.publish(folder, envelope)


@pytest.mark.parametrize("error", [InspectionError("no"), ValueError("odd"), OSError("no space")])
def test_a_failed_publication_never_ends_a_run(small_recipe, tmp_path, scene, error):
    """It is told, the run goes on, and the next release is tried again."""
    broken = Broken(scene, error, times=1)
    run, (first, second) = play(small_recipe(*EACH), tmp_path / "runs", scene, target=broken)
    assert isinstance(first, PublicationFailed)
    assert isinstance(second, ReleasePublished)
    assert run.is_published
    assert list(index_of(scene).releases) == [second.release]


def test_what_a_stop_left_out_is_published_when_the_run_goes_on(small_recipe, tmp_path, scene):
    """A round whose release is not on record is made up for; one that is, is not repeated."""
    run = simulation.start(plan(small_recipe(*EACH)), runs=tmp_path / "runs")

    def stop(event: Event) -> None:
        if isinstance(event, RoundFinished) and event.record["round"] == 1:
            raise KeyboardInterrupt

    publication = Publication(run, scene.publisher, stop)
    with pytest.raises(KeyboardInterrupt):
        simulation.simulate(run, observe=publication.begin())
    assert not run.releases.exists()
    (run.path / ".release-killed").mkdir()
    told: list[Event] = []
    again = Publication(run, scene.publisher, told.append)
    simulation.simulate(run, observe=again.begin())
    published = [each.round for each in told if isinstance(each, ReleasePublished)]
    assert published == [1, 2]
    again.begin()
    assert len(index_of(scene).releases) == 2
    assert not list(run.path.glob(".release-*"))


def test_a_stop_after_the_promotion_makes_no_second_release(small_recipe, tmp_path, scene):
    """Its parent would be itself; nor does a person's hand make one."""
    run, (published,) = play(small_recipe(*EACH[1:]), tmp_path / "runs", scene)
    run.releases.unlink()
    told: list[Event] = []
    Publication(run, scene.publisher, told.append).begin()
    assert told == [published]
    assert publish_run(run, scene.publisher).release == published.release
    assert list(index_of(scene).releases) == [published.release]


def test_what_somebody_else_promoted_meanwhile_stays(small_recipe, tmp_path, scene):
    """A release is judged against what the alias pointed to then, and takes that one's place."""
    _, (first,) = play(small_recipe(*EACH[1:]), tmp_path / "runs", scene)
    off = "publish={margin: null, site_margin: null}"
    _, (second,) = play(small_recipe(*EACH[1:], off, "seed=1"), tmp_path / "runs", scene)

    class Meanwhile(Store):
        def publish(self, folder: Path, envelope: bytes) -> None:
            super().publish(folder, envelope)
            move = scene.publisher.move
            move("small", "production", first.release, expected=second.release, reason="mine")

    target = Meanwhile(scene.store.path, key=scene.signer.public)
    again = small_recipe(*EACH[1:], off, "seed=2")
    _, (failed,) = play(again, tmp_path / "runs", scene, target=target)
    assert isinstance(failed, PublicationFailed)
    assert "somebody moved it meanwhile" in failed.reason
    assert index_of(scene).target("production") == first.release


def test_the_published_adapter_is_the_aggregator_s(small_recipe, tmp_path, scene):
    """To the bit, and PEFT loads it onto the base."""
    run, (published,) = play(small_recipe(*EACH[1:]), tmp_path / "runs", scene)
    folder = scene.store.path / "releases" / published.release
    file = "adapter_model.safetensors"
    assert (folder / file).read_bytes() == (run.release / file).read_bytes()
    base = AutoModelForCausalLM.from_pretrained(resolve("embedded", None), dtype=torch.float32)
    ids = torch.tensor([[5, 6, 7, 8]])
    before = base(input_ids=ids).logits
    after = PeftModel.from_pretrained(base, folder)(input_ids=ids).logits
    assert not torch.allclose(before, after, atol=1e-3)


PRIVATE = (
    "privacy={unit: example, epsilon: 8, delta: 1e-3, records: 20}",
    "federation={rounds: 1, local_steps: 1, evaluate_every: 0}",
    "publish.margin=null",
)
CLIENTS = (
    "privacy={unit: client, epsilon: 8, delta: 1e-3, clip_norm: 0.01}",
    "federation={rounds: 1, local_steps: 1, evaluate_every: 0}",
    "publish.margin=null",
)


@pytest.mark.parametrize("private", [PRIVATE, CLIENTS], ids=["example", "client"])
def test_the_public_text_judges_private_runs_at_no_cost(
    small_recipe, tmp_path, scene, general, private
):
    """It is measured at all sites, and no ledger has a row for it."""
    text = f"publish.forgetting={{path: {general}, margin: 100}}"
    run, (published,) = play(small_recipe(*private, text), tmp_path / "runs", scene)
    first, last = run.records()
    assert first["public"].keys() == last["public"].keys() == {"north", "south"}
    assert first["evaluation"] == last["evaluation"] == {}
    evaluation = manifest_of(scene, published.release).evaluation
    assert evaluation.forgetting
    assert evaluation.held_out is None
    assert published.promoted == "production"
    for path in [*run.path.glob("sites/*/ledger.sqlite"), *run.path.parent.glob("ledger.sqlite")]:
        ledger = Ledger(path, new_filter=RenyiFilter)
        for account in ledger.balances():
            assert {row.purpose for row in ledger.rows(account)} == {"train"}


def test_a_private_site_tells_the_public_loss_and_nothing_besides(
    small_recipe, tmp_path, general, monkeypatch
):
    """A loss of its own rows that comes along uncharged is refused, and the run says so."""
    from fedlora.runtime.site import client  # noqa: PLC0415 - what the test alters

    text = f"publish.forgetting={{path: {general}, margin: 100}}"
    run = simulation.start(plan(small_recipe(*PRIVATE, text)), runs=tmp_path / "runs")
    real = client.records.reply

    def telling(metrics, **more):
        extra = {"eval_loss_sum": 1.0, "eval_tokens": 7} if "public_tokens" in metrics else {}
        return real({**metrics, **extra}, **more)

    monkeypatch.setattr(client.records, "reply", telling)
    simulation.simulate(run, observe=lambda _: None)
    for record in run.records():
        assert record["public"] == {}
        assert set(record["unmeasured"]) == {"north", "south"}
        assert all("gate refused" in reason for reason in record["unmeasured"].values())


def test_the_command_publishes_and_says_what_became_of_it(
    recipe_text, tmp_path, command_line, monkeypatch
):
    """Without the key nothing is published, and a registry alone is an error before anything."""
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(recipe_text, encoding="utf-8")
    one = ("simulate", "recipe.yaml", "federation.rounds=1", "--registry", "store")
    assert command_line("registry", "init", "store", "--key", "publisher.key")[0] == 0
    code, _, errors = command_line(*one)
    assert (code, Path("runs").exists()) == (2, False)
    assert "give both or neither" in errors
    code, output, _ = command_line(*one, "--key", "publisher.key")
    assert code == 0
    release = Store(Path("store"), key=PublicKey.read(Path("publisher.key.pub"))).names()
    assert list(release) == ["small"]
    assert ": production" in output


def test_a_coordinator_publishes_where_there_are_store_and_key(small_recipe, tmp_path):
    """A store that is not there, or not whole, is no reason not to play."""
    folder = ServerFolder(tmp_path)
    run = simulation.start(plan(small_recipe()), runs=folder.runs)
    publishing, observe = Coordinator(folder)._publishing, [].append
    assert publishing(run, observe) is observe
    new_store(tmp_path / "elsewhere", key=folder.publisher_key)
    assert publishing(run, observe) is observe
    new_store(folder.store, key=folder.publisher_key)
    assert publishing(run, observe) is not observe
