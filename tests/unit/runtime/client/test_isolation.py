"""How the trainer is to be started, and what a gate makes of the report that it gives."""

import json
import os
from pathlib import Path

import pytest

from fedlora.errors import RunError
from fedlora.runtime.client import isolation
from fedlora.runtime.client.folder import SiteFolder
from fedlora.runtime.client.probes import Place, Probe, Report

USER = 64_123
HERE = Place(namespaces={"net": 1, "pid": 2}, folders={"/tmp": (8, 1)})  # noqa: S108 - a fact
THERE = Place(namespaces={"net": 3, "pid": 4}, folders={"/tmp": (9, 1)})  # noqa: S108 - a fact

NOWHERE = Place(namespaces={}, folders={})


@pytest.fixture
def folder(tmp_path) -> SiteFolder:
    """A site's folder."""
    made = SiteFolder(tmp_path / "site")
    for path in (made.credentials, made.gate, made.trainer):
        path.mkdir(parents=True)
    return made


def wanted(folder: SiteFolder, *, isolated: str = "none", **changes: object) -> dict:
    facts = {"user": USER, "readable": [], "listener": 7, "environment": {}} | changes
    command = isolation.command(["/bin/true", "x"], folder=folder, isolation=isolated, **facts)
    assert command[-2:] == ["/bin/true", "x"]
    return json.loads(command[-3])


def report(*failed: str, user: int = USER, place: Place = THERE) -> Report:
    probes = [Probe(name=name, passed=False, found="it is there") for name in failed]
    return Report(
        user=user, place=place, probes=(Probe(name="DNS", passed=True, found=""), *probes)
    )


def judged(given: Report) -> list[str]:
    probes = isolation.compared(given, gate=HERE, user=1000).probes
    return [probe.name for probe in probes if not probe.passed]


def test_the_environment_is_a_list_of_what_is_allowed(folder):
    """Tokens, proxies and agents of the operator's shell stay out."""
    shell = {
        "HF_TOKEN": "secret",
        "SSH_AUTH_SOCK": "/run/agent",
        "https_proxy": "http://proxy",
        "LD_PRELOAD": "evil.so",
        "CUDA_VISIBLE_DEVICES": "1",
        "LANG": "C",
    }
    found = wanted(folder, environment=shell)["environment"]
    assert not {"HF_TOKEN", "SSH_AUTH_SOCK", "https_proxy", "LD_PRELOAD"} & found.keys()
    assert found["CUDA_VISIBLE_DEVICES"] == "1"
    assert found["FEDLORA_SITES"] == found["HOME"] == str(folder.trainer)
    assert found["HF_HUB_OFFLINE"] == "1"


def test_who_is_not_root_cannot_isolate(folder, monkeypatch):
    """It is said before anything starts, with what to do; none needs no rights."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(RunError, match="only root can give the trainer"):
        wanted(folder, isolated="required")
    assert not wanted(folder)["isolated"]


@pytest.mark.parametrize("owner", [0, 1000])
def test_the_trainers_user_is_nobody_else(folder, monkeypatch, owner):
    """Neither root nor who owns the site's folder, and so its keys."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    stat = os.stat_result((0o40755, 1, 1, 1, 1000, 1000, 0, 0, 0, 0))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", lambda *_, **__: stat)
        with pytest.raises(RunError, match=r"trainer\.user: a user of the trainer's own"):
            wanted(folder, isolated="required", user=owner)


@pytest.mark.parametrize(
    "name", ["", "site", "site/credentials", "site/gate/ledger.sqlite", "link"]
)
def test_keys_cannot_be_shown_as_data(folder, monkeypatch, name):
    """Not by a folder that they lie in, nor one of them, nor by a link."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    (folder.gate / "ledger.sqlite").touch()
    (folder.path.parent / "link").symlink_to(folder.credentials)
    with pytest.raises(RunError, match="keys or the ledger"):
        wanted(folder, isolated="required", readable=[folder.path.parent / name])


def test_data_that_is_not_there_is_named(folder, monkeypatch):
    """Rather than found missing by the trainer, who sees nothing else either."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(RunError, match=r"nowhere\.jsonl: the trainer is to read it"):
        wanted(folder, isolated="required", readable=[folder.path / "nowhere.jsonl"])


def test_a_sound_report_passes(folder):
    """With all that gate and trainer see together."""
    assert judged(report()) == []
    isolation.require(isolation.compared(report(), gate=HERE, user=1000), "required")


@pytest.mark.parametrize(
    ("given", "failed"),
    [
        (report(user=1000), ["own user"]),
        (report(user=0), ["own user"]),
        (report(place=HERE), ["own net namespace", "own pid namespace", "own /tmp"]),
        (
            report(place=Place(namespaces={}, folders={})),
            ["own net namespace", "own pid namespace"],
        ),
        (report("TCP"), ["TCP"]),
    ],
)
def test_what_is_shared_or_not_said_fails(given, failed):
    """A trainer that leaves a namespace out of its report has not shown that it has its own."""
    assert judged(given) == failed


def test_a_gate_names_all_that_failed_unless_the_operator_said_none():
    """And what to do about it."""
    given = report("TCP", "ptrace")
    with pytest.raises(RunError, match=r"TCP \(it is there\); ptrace \(it is there\)") as refused:
        isolation.require(given, "required")
    assert "as root" in str(refused.value)
    assert "SYS_ADMIN" in str(refused.value)
    assert "isolation: none" in str(refused.value)
    isolation.require(given, "none")
