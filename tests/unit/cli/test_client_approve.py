"""What an operator types: see, say yes or no, look what stands where."""

from getpass import getuser

import pytest
import typer
from typer.testing import CliRunner

from fedlora.cli import client_approve
from fedlora.errors import PolicyError, RunError
from fedlora.gate.chain import AdapterChain
from fedlora.gate.policy import Policy
from fedlora.recipe import Recipe
from fedlora.runtime.client.approvals import Approvals
from fedlora.runtime.client.folder import SiteFolder
from fedlora.runtime.enrolment import JoinBundle
from fedlora.runtime.server.configuration import Configuration
from fedlora.runtime.server.installation import install
from tests.strategies import make_spec

ASKED = Recipe.from_yaml("privacy: {unit: none}\ndatasets: [{path: a.jsonl, site: north}]\n")

app = typer.Typer()
app.command()(client_approve.approve)
app.command()(client_approve.runs)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> str:
    """What a site that has enrolled keeps of its join bundle."""
    path = tmp_path_factory.mktemp("aggregator") / "folder"
    made = install(path, Configuration.of(["fl.example"]), sites=["north"])
    return JoinBundle.read(made.bundle("north")).without_token().to_yaml()


@pytest.fixture
def folder(tmp_path, monkeypatch, bundle):
    """A site that one run has asked."""
    monkeypatch.delenv("SUDO_USER", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    site = SiteFolder(tmp_path)
    site.configuration.write_text("site: north\ndata: [{path: rows.jsonl}]\npolicy: {}\n")
    site.credentials.mkdir()
    site.join.write_text(bundle)
    with pytest.raises(PolicyError, match="waits"):
        approvals_of(site).require("run-1", ASKED, spec=make_spec(), policy=Policy())
    return site


def approvals_of(site: SiteFolder) -> Approvals:
    return Approvals(site.approvals)


def call(site: SiteFolder, *arguments: str, typed: str = "") -> str:
    command = [*arguments, "--dir", str(site.path)]
    return CliRunner().invoke(app, command, input=typed, catch_exceptions=False).output


def states(site: SiteFolder) -> list[str]:
    return [state for _, state in approvals_of(site).requests()]


def test_a_yes_is_asked_for_after_the_summary(folder):
    """What is asked is on the screen before the question."""
    said = call(folder, "approve", "run-1", typed="y\n")
    assert said.index("nothing bounds what the updates tell") < said.index("Approve run run-1?")
    assert "the aggregator at fl.example:9443" in said
    assert str(folder.path / "rows.jsonl") in said
    assert f"Run run-1 is approved by {getuser()} at " in said
    assert states(folder) == ["approved"]


@pytest.mark.parametrize("typed", ["n\n", "\n"])
def test_anything_but_yes_answers_nothing(folder, typed):
    """To press return is no yes, and no refusal either."""
    assert "Nothing was answered" in call(folder, "approve", "run-1", typed=typed)
    assert states(folder) == ["waits"]


def test_a_refusal_is_recorded(folder, monkeypatch):
    """By whom: sudo does not hide who typed."""
    monkeypatch.setenv("SUDO_USER", "ada")
    assert "Refuse run run-1?" in call(folder, "approve", "run-1", "--refuse", typed="y\n")
    assert states(folder) == ["refused"]
    assert "is approved by ada" in call(folder, "approve", "run-1", "--yes")
    assert [answer.who for answer in approvals_of(folder).answers("run-1")] == ["ada", "ada"]


def test_a_run_that_did_not_ask_is_an_error(folder):
    """The operator cannot approve what was never shown."""
    with pytest.raises(RunError, match="Nothing was asked in a run 'run-2'"):
        call(folder, "approve", "run-2", "--yes")


def test_runs_are_listed_with_where_they_stand(folder):
    """Those that asked, and those that needed no answer but were seen."""
    chain = AdapterChain(folder.gate / "chain")
    for run, number in (("run-1", 4), ("free", 7)):
        chain.keep(run, "c" * 64, number=number, digest="1" * 64, norms={})
    call(folder, "approve", "run-1", "--yes")
    rows = [line.split() for line in call(folder, "runs").splitlines()]
    assert rows[1][0] == "run-1"
    assert rows[1][2:] == ["approved", getuser(), "4"]
    assert rows[2] == ["free", "needs", "no", "answer", "7"]


def test_a_site_that_nobody_asked_says_so(tmp_path):
    """An empty table would look like an error."""
    SiteFolder(tmp_path).configuration.touch()
    assert "No run has asked anything" in call(SiteFolder(tmp_path), "runs")
