"""What a private site checks of itself before anything leaves it, and what it leaves nowhere."""

import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from flwr.app import Message

from fedlora.errors import RunError
from fedlora.privacy.accounting.renyi_filter import RenyiFilter
from fedlora.privacy.ledger import EMPTY, ChargeRow, Committed, Ledger
from fedlora.privacy.mechanism import KeyStream
from fedlora.runtime import simulation
from fedlora.runtime.aggregator.server import serve
from fedlora.runtime.carriers.in_process import InProcessGrid
from fedlora.runtime.plan import plan
from fedlora.runtime.run_folder import RunFolder
from fedlora.runtime.simulation import start
from fedlora.runtime.site.client import app
from fedlora.runtime.site.memory import FOLDER, SiteMemory
from fedlora.runtime.site.site import Site

PRIVATE = (
    "privacy={unit: example, epsilon: 8, delta: 1e-3, records: 20, evaluation_noise: 6}",
    "federation={rounds: 2, local_steps: 2, quorum: 1}",
)
QUIET = ("privacy.evaluation_noise=null", "federation.evaluate_every=0")


@pytest.fixture
def begin(small_recipe, tmp_path, monkeypatch) -> Callable[..., RunFolder]:
    """Return a run that is about to start, with some overrides; sites are not simulated."""
    monkeypatch.setenv(FOLDER, str(tmp_path / "sites"))
    return lambda *overrides: start(
        plan(small_recipe(*PRIVATE, *overrides)), runs=tmp_path / "runs"
    )


def play(run: RunFolder) -> RunFolder:
    serve(InProcessGrid(app, clients=2), run.path, observe=lambda _: None)
    return run


def ledger(tmp_path: Path, site: str = "north") -> Ledger:
    return Ledger(tmp_path / "sites" / site / "ledger.sqlite", new_filter=RenyiFilter)


def uncharged(_: Ledger, account: str, run: str, **facts: object) -> Committed:
    """Stand in for ``Ledger.commit``: a proof of a charge that is on no disk."""
    return Committed(row=ChargeRow(account=account, run=run, attempt=1, time="", **facts))


def test_the_gate_lets_nothing_out_that_was_not_charged(begin, tmp_path, monkeypatch):
    """Neither update nor loss: it looks into the ledger itself, whatever the trainer holds."""
    run = begin()
    monkeypatch.setattr(Ledger, "commit", uncharged)
    with pytest.raises(RunError, match="The site's gate refused the answer"):
        play(run)
    (start,) = run.records()
    assert list(start["unmeasured"]) == ["north", "south"]
    assert all("gate refused the answer" in reason for reason in start["unmeasured"].values())
    assert ledger(tmp_path).rows("default") == []


def test_an_earlier_charge_of_the_round_pays_for_no_other_noise(begin, tmp_path, monkeypatch):
    """A round that is played again needs a row of its own."""

    class Twice(InProcessGrid):
        def _answer(self, message: Message) -> Message:
            first = super()._answer(message)
            if message.metadata.message_type != "train":
                return first
            assert not first.has_error()
            with monkeypatch.context() as patch:
                patch.setattr("fedlora.runtime.site.mods.Outbox.answer", lambda *_: None)
                patch.setattr(Ledger, "commit", uncharged)
                return super()._answer(message)

    run = begin(*QUIET)
    with pytest.raises(RunError, match="The site's gate refused the answer"):
        serve(Twice(app, clients=2), run.path, observe=lambda _: None)
    assert [row.number for row in ledger(tmp_path).rows("default")] == [1]


def test_a_site_whose_noise_is_wrong_reads_no_data(begin, tmp_path, monkeypatch):
    """It does not even say who it is; nothing is charged."""
    run = begin("seed=71")  # of which no site is open in this process yet
    read: list[object] = []
    gaussian = KeyStream.gaussian
    monkeypatch.setattr(KeyStream, "gaussian", lambda self, count: 0.9 * gaussian(self, count))
    monkeypatch.setattr(
        "fedlora.runtime.site.site.site_examples", lambda *asked: read.append(asked)
    )
    with pytest.raises(RunError, match="0 sites answered, but a cohort is 2"):
        play(run)
    assert read == []
    assert not (tmp_path / "sites" / "north").exists()


def test_each_round_tests_its_noise_before_it_is_charged(begin, tmp_path, monkeypatch):
    """Also long after the data was read, and with noise of its own that no round draws."""
    run, gaussian = begin(*QUIET), KeyStream.gaussian
    Site.open(run.recipe(), "north")
    monkeypatch.setattr(KeyStream, "gaussian", lambda self, count: 0.9 * gaussian(self, count))
    with pytest.raises(RunError, match="The site could not answer"):
        play(run)
    assert ledger(tmp_path).head() == EMPTY


def test_the_self_test_takes_nothing_of_a_rounds_noise(small_recipe, tmp_path, monkeypatch):
    """Reproducible runs stay equal, however often the noise was tested."""
    recipe = small_recipe(*PRIVATE, *QUIET, "simulation.reproducible_noise=true")
    runs = []
    for name in ("one", "two"):
        run = start(plan(recipe), runs=tmp_path / name)
        simulation.simulate(run, observe=lambda _: None)
        runs.append(run.load().adapter.values)
        monkeypatch.setattr("fedlora.runtime.site.private_round.self_test", lambda *_: None)
    assert torch.equal(*runs)


def test_an_adaptive_clip_norm_goes_on_where_the_round_before_ended(begin, tmp_path):
    """Each charge has the bound with which its round begins; the run's reservation covers it."""
    run = play(begin(*QUIET, "federation.rounds=3", "privacy.clip_quantile=0.5"))
    charges = [row.charge for row in ledger(tmp_path).rows("default")]
    memory = SiteMemory("north", run.name)
    bounds = [float(memory.recall("clip-B", before=number)) for number in (2, 3, 4)]
    assert [charge.sensitivity for charge in charges] == [1.0, *bounds[:2]]
    assert len({1.0, *bounds}) == 4
    assert not ledger(tmp_path).balances()["default"].reserved


def test_under_privacy_nothing_about_the_data_lies_outside_the_sites_folder(
    begin, small_recipe, tmp_path
):
    """Not even a digest, against which a guess could be held; without privacy there is one."""
    run = begin()
    digests = {site.name: site.digest for site in plan(run.recipe()).sites}
    assert run.data() == {}
    play(run)
    written = [path.read_bytes() for path in run.path.rglob("*") if path.is_file()]
    for digest in digests.values():
        assert not any(digest.encode() in content for content in written)
    assert simulation.resume(run.path).path == run.path
    free = start(plan(small_recipe()), runs=tmp_path / "free")
    assert free.data().keys() == {"north", "south"}


def test_the_key_of_fingerprints_is_its_owners_alone(begin, tmp_path):
    """It is made once; all charges of the same data have the same fingerprint by it."""
    play(begin())
    path = tmp_path / "sites" / "north" / "ledger.key"
    key = path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(key) == 32
    play(begin())
    assert path.read_bytes() == key
    assert len({row.data for row in ledger(tmp_path).rows("default")}) == 1
