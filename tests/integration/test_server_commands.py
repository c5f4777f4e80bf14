"""The operator's commands, from a new folder to a site that is admitted and revoked."""

import sys
from io import StringIO

import pytest

from fedlora.lock import BaseDigests
from fedlora.recipe import Recipe
from fedlora.runtime.enrolment import EnrolmentRequest, JoinBundle
from fedlora.runtime.lock import locked
from fedlora.runtime.server.directory import Directory
from fedlora.runtime.server.runs import Runs
from tests.deployment import new_aggregator, new_keys, running_superlink
from tests.strategies import make_spec


@pytest.fixture(name="folder")
def _folder(tmp_path):
    return new_aggregator(tmp_path / "agg", sites=["bank", "ministry"])


def request_of(folder, site):
    bundle = JoinBundle.read(folder.bundle(site))
    node_key, gate_key = new_keys()
    return EnrolmentRequest(site=site, token=bundle.token, node_key=node_key, gate_key=gate_key)


def test_a_folder_is_made_and_its_sites_are_listed(command_line, tmp_path):
    """Init says what to hand over and what to take away; both, what sites are to compare."""
    path = tmp_path / "agg"
    code, out, _ = command_line(
        "server", "init", path, "--host", "fl.example.org", "--sites", "hospital, bank"
    )
    assert code == 0
    assert "fl.example.org:9443" in out
    assert str(path / "bundles" / "hospital.join.yaml") in out
    assert "ca.key off this host" in out
    bundle = JoinBundle.read(path / "bundles" / "bank.join.yaml")
    compared = f"Aggregator's CA:  SHA256 {bundle.ca_fingerprint}"
    assert compared in out
    code, out, _ = command_line("server", "sites", "--dir", path)
    *rows, last = [line.split()[:2] for line in out.splitlines()[1:]]
    assert compared in out
    assert last[0] == "Aggregator's"
    assert (code, rows) == (0, [["bank", "invited"], ["hospital", "invited"]])


def test_certificates_that_end_soon_are_told(command_line, folder):
    """Until they are renewed."""
    command_line("server", "renew", "--dir", folder.path, "--days", 10)
    assert (
        "front.crt ends in 9 days: fedlora server renew"
        in (command_line("server", "sites", "--dir", folder.path)[2])
    )
    code, out, _ = command_line("server", "renew", "--dir", folder.path)
    assert (code, "fedlora server start" in out) == (0, True)
    assert not command_line("server", "sites", "--dir", folder.path)[2]


def test_admitting_and_revoking_need_superlink(command_line, folder):
    """The error says so; what can be refused without it is."""
    sent = request_of(folder, "bank")
    Directory(folder).enrol(sent)
    told = "--dir", folder.path, "--fingerprint", sent.fingerprint
    code, _, error = command_line("server", "admit", "bank", *told)
    assert (code, "fedlora server start" in error) == (2, True)
    mistyped = "--dir", folder.path, "--fingerprint", sent.fingerprint[:20]
    code, _, error = command_line("server", "admit", "bank", *mistyped)
    assert (code, "is no whole fingerprint" in error) == (2, True)
    assert Directory(folder).entry("bank").state == "waiting"


def test_a_site_is_admitted_and_revoked(command_line, folder, tmp_path, monkeypatch):
    """By a request that came as a file, after the operator has compared the fingerprint."""
    sent = request_of(folder, "bank")
    file = tmp_path / "bank.request.json"
    file.write_bytes(sent.to_json())
    told = "bank", "--dir", folder.path
    with running_superlink(folder):
        code, _, error = command_line("server", "admit", "ministry", *told[1:], "--request", file)
        assert (code, "of site bank" in error) == (2, True)
        monkeypatch.setattr(sys, "stdin", StringIO("n\n"))
        code, out, _ = command_line("server", "admit", *told, "--request", file)
        assert (code, sent.fingerprint in out) == (1, True)
        assert Directory(folder).entry("bank").state == "waiting"
        monkeypatch.setattr(sys, "stdin", StringIO("y\n"))
        assert command_line("server", "admit", *told)[0] == 0
        [(node_id, name)] = Directory(folder).admitted().items()
        code, out, _ = command_line("server", "sites", "--dir", folder.path)
        assert (name, f"{node_id}" in out, sent.fingerprint in out) == ("bank", True, True)
        assert command_line("server", "revoke", *told, "--reason", "left")[0] == 0
        assert "revoked (left)" in command_line("server", "sites", "--dir", folder.path)[1]
        code, _, error = command_line("server", "admit", *told, "--fingerprint", sent.fingerprint)
        assert (code, "was revoked" in error) == (2, True)


def test_a_lost_database_is_mended_by_admitting_again(command_line, folder):
    """SuperLink knows the site under a new id then, and the directory follows."""
    sent = request_of(folder, "bank")
    Directory(folder).enrol(sent)
    told = "bank", "--dir", folder.path, "--fingerprint", sent.fingerprint
    with running_superlink(folder):
        assert command_line("server", "admit", *told)[0] == 0
        before = dict(Directory(folder).admitted())
        assert command_line("server", "admit", *told)[0] == 0
        assert Directory(folder).admitted() == before
    for path in folder.state.glob("superlink.sqlite*"):
        path.unlink()
    with running_superlink(folder):
        assert command_line("server", "admit", *told)[0] == 0
        after = Directory(folder).admitted()
    assert (list(after.values()), after.keys() & before.keys()) == (["bank"], set())


def test_a_finished_run_is_neither_stopped_nor_resumed(command_line, folder):
    """The error says where its adapter is."""
    recipe = Recipe.from_yaml("{datasets: [{site: bank}], privacy: {unit: none}}")
    runs = Runs(folder.runs)
    run = runs.begin(
        locked(recipe, make_spec(), BaseDigests(weights_digest="0" * 64, tokenizer_digest="1" * 64))
    )
    runs.note(run, "finished")

    for command in ("stop", "resume"):
        code, _, error = command_line("server", command, run.name, "--dir", folder.path)
        assert (code, f"is finished: {run.release}" in error) == (2, True)
