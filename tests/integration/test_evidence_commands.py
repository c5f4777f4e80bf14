"""``fedlora client evidence`` as its operator and an auditor meet it."""

import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fedlora.cli import client_evidence
from fedlora.errors import EnrolmentError
from fedlora.runtime.client.folder import SiteFolder
from fedlora.runtime.enrolment import JoinBundle, certificate_fingerprint
from fedlora.runtime.secure_terms import STAGES
from fedlora.runtime.server.authority import Authority
from fedlora.signing import Signer, new_key
from tests.evidence import Site, configured, decided, received, refused, released, signer


@pytest.fixture
def evidence(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """Run ``evidence`` on a wide terminal; return exit code, output and errors."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["evidence", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            client_evidence.app()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture
def folder(tmp_path) -> SiteFolder:
    """The folder of a client with one round that was answered, and one that was refused."""
    folder = SiteFolder(tmp_path / "client")
    new_key(folder.gate_key)
    site = Site(folder.evidence, gate=Signer.load(folder.gate_key))
    aggregator = site.aggregator.public.text
    authority = Authority.new()
    bundle = JoinBundle(
        site="north",
        aggregator="aggregator.example:9443",
        ca_certificate=authority.pair().certificate.decode(),
        ca_fingerprint=certificate_fingerprint(authority.certificate),
        aggregator_key=aggregator,
    )
    folder.join.write_text(bundle.to_yaml(), encoding="utf-8")
    log = site.log()
    log.append(configured(log))
    site.answered(log, 1, size=1234567)
    log.require_receipted(site.receipt(log), aggregator=site.aggregator.public)
    log.append(received(log, 2))
    log.append(decided(log, 2, "learning_rate is 3e-2, above 1e-3"))
    log.append(refused(2))
    return folder


def test_show_prints_what_came_in_and_what_left(evidence, folder):
    """Oldest first, an entry a line."""
    code, out, _ = evidence("show", "--dir", folder.path)
    assert code == 0
    lines = [re.split(r"  +", line.strip()) for line in out.splitlines() if line.strip()]
    time = "2030-01-01 12:00:0"
    run = "demo-1"
    assert [line[2:] for line in lines[1:]] == [
        ["configured", lines[1][-1]],
        ["← in", run, "1", "train", "2,000", "a" * 12, lines[2][-1]],
        [run, "1", "train", "allowed"],
        ["→ out", run, "1", "train", "1,234,567", "d" * 12, "train_loss; ledger row 1"],
        ["← in", "receipted", "the aggregator has seen entry 4"],
        ["← in", run, "2", "train", "2,000", "a" * 12, lines[6][-1]],
        [run, "2", "train", "refused: learning_rate is 3e-2, above 1e-3"],
        ["→ out", run, "2", "train", "The site's policy does not allow it. (PolicyError)"],
    ]
    assert [line[:2] for line in lines[1:]] == [[f"{n}", f"{time}{n}"] for n in range(1, 9)]


def test_show_of_a_run_or_of_the_newest(evidence, folder):
    """And how many are left out."""
    _, out, _ = evidence("show", "--dir", folder.path, "--last", 2)
    assert [line.split()[0] for line in out.splitlines()[1:3]] == ["7", "8"]
    assert "6 older entries are not shown" in out
    _, out, _ = evidence("show", "--dir", folder.path, "--run", "demo-1")
    assert [line.split()[0] for line in out.splitlines()[1:7]] == ["2", "3", "4", "6", "7", "8"]
    assert evidence("show", "--dir", folder.path, "--run", "x") == (
        0,
        "No entry of run x is in the log.\n",
        "",
    )


def test_verify_says_what_is_proven_and_what_not(evidence, folder):
    """Of a whole log."""
    code, out, _ = evidence("verify", "--dir", folder.path)
    assert code == 0
    assert out.startswith("Whole.\n  proven      8 entries of north, from 2030-01-01T12:00:01.000")
    assert "The aggregator has signed that it saw entries 1 to 4" in out
    assert "No receipt covers the entries after 4" in out
    assert "not proven  That noise was added" in out


def test_stages_of_a_secure_sum_are_shown_verified_and_packed(evidence, folder, tmp_path):
    """As any other instruction and answer."""
    log, stages = Site(folder.evidence, gate=Signer.load(folder.gate_key)).log(), []
    for stage in STAGES:
        asked, answer = received(log, 3), released(log, 3)
        log.append(replace(asked, purpose=f"train.{stage}"))
        log.append(replace(answer, purpose=f"train.{stage}", metrics=()))
        stages.append(evidence("show", "--dir", folder.path, "--last", 2)[1])
    names = "share keys", "masked update", "sign who is in", "reveal shares"
    for name, shown in zip(names, stages, strict=True):
        assert shown.count(f"secure sum: {name}") == 2
    assert evidence("verify", "--dir", folder.path)[0] == 0
    assert evidence("export", "--dir", folder.path, "--to", tmp_path / "pack")[0] == 0
    assert evidence("verify", tmp_path / "pack")[0] == 0
    page = (tmp_path / "pack" / "evidence.html").read_text(encoding="utf-8")
    assert all(f"secure sum: {name}" in page for name in names)


def test_verify_names_what_is_broken(evidence, folder):
    """On the error stream, with exit code 1."""
    shutil.copy(folder.evidence / "log.sqlite", folder.path / "old")
    log = Site(folder.evidence, gate=Signer.load(folder.gate_key)).log()
    log.append(refused(3))
    shutil.copy(folder.path / "old", folder.evidence / "log.sqlite")
    code, out, err = evidence("verify", "--dir", folder.path)
    assert (code, out) == (1, "")
    assert "broken: " in err
    assert "it has 8 rows, and log.sqlite.head has seen 9" in err


@pytest.mark.parametrize("name", ["pack.zip", "pack"])
def test_a_pack_is_exported_and_verified(evidence, folder, tmp_path, name):
    """With keys of the auditor's own, and against an older pack."""
    older, pack = tmp_path / "older.zip", tmp_path / name
    evidence("export", "--dir", folder.path, "--to", older)
    code, out, _ = evidence("export", "--dir", folder.path, "--to", pack)
    assert code == 0
    fingerprint = Signer.load(folder.gate_key).public.fingerprint
    assert f"{pack}: 10 entries" in out
    assert fingerprint in out
    code, out, _ = evidence("verify", pack)
    assert code == 0
    assert "not proven  That the gate's key is its own" in out
    (tmp_path / "aggregator.pub").write_text(signer(2).public.text)
    keys = "--gate-key", folder.credentials / "gate.key.pub", "--aggregator-key"
    code, out, _ = evidence("verify", pack, *keys, tmp_path / "aggregator.pub", "--since", older)
    assert code == 0
    assert f"proven      It has grown from the log in {older}" in out
    assert "is its own" not in out
    code, _, err = evidence("verify", older, *keys, tmp_path / "aggregator.pub", "--since", pack)
    assert code == 1
    assert f"The log has 9 entries, but {pack} has 10" in err
    assert evidence("verify", "--dir", folder.path, "--since", pack)[0] == 0


def test_a_pack_with_a_changed_file_is_named(evidence, folder, tmp_path):
    """The readable page, too."""
    evidence("export", "--dir", folder.path, "--to", tmp_path / "pack")
    page: Path = tmp_path / "pack" / "evidence.html"
    page.write_text(page.read_text(encoding="utf-8").replace("1,234,567", "1,234,566"), "utf-8")
    code, _, err = evidence("verify", tmp_path / "pack")
    assert code == 1
    assert "evidence.html is not what was exported" in err


def test_a_folder_that_is_no_clients_is_named(tmp_path):
    """The error says which file was looked for."""
    with pytest.raises(EnrolmentError, match="not a site's folder"):
        client_evidence.app(["verify", "--dir", str(tmp_path)], standalone_mode=False)
