"""``fedlora privacy ledger`` as its operator meets it."""

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from fedlora.privacy.accounting.renyi_filter import RenyiFilter
from fedlora.privacy.charge import Charge
from fedlora.privacy.ledger import Ledger

STEP = Charge.of_steps(15, sensitivity=1.0, noise_multiplier=1.25, sampling_rate=0.02)
LOSS = replace(STEP, noise_multiplier=20.0, sampling_rate=1.0, steps=1, sampler="all")


@pytest.fixture
def fedlora(command_line, monkeypatch) -> Callable[..., tuple[int, str, str]]:
    """Run ``fedlora privacy ledger`` on a wide terminal; return exit code, output and errors."""
    monkeypatch.setenv("COLUMNS", "160")
    return partial(command_line, "privacy", "ledger")


@pytest.fixture
def path(tmp_path) -> Path:
    """A site's ledger with two runs, of which one goes on."""
    path = tmp_path / "ledger.sqlite"
    noon = datetime(2030, 1, 1, 12, tzinfo=UTC)
    ledger = Ledger(path, new_filter=RenyiFilter, clock=lambda: noon)
    ledger.open_account("default", epsilon=20.0, delta=1e-6)
    ledger.reserve("default", "one", maximum=[replace(STEP, steps=45), LOSS])
    for number in (1, 2, 2):
        ledger.commit("default", "one", purpose="train", number=number, charge=STEP, data="")
    ledger.commit("default", "one", purpose="evaluate", number=2, charge=LOSS, data="")
    ledger.reserve("default", "two", maximum=[replace(STEP, steps=1500)])
    return path


def test_show_says_what_was_spent_and_is_promised(fedlora, path):
    """Below each run a line for what it did and for what it may do; ε as the account counts."""
    code, out, _ = fedlora("show", path)
    assert code == 0

    def cost(*charges: Charge) -> str:
        return f"{RenyiFilter(epsilon=1.0, delta=1e-6).epsilon_of(charges):.3g}"

    trained, planned = replace(STEP, steps=45), replace(STEP, steps=1500)
    lines = [line.split() for line in out.splitlines() if line.strip()]
    assert out.startswith(
        f"Account default: ε {cost(trained, LOSS)} spent of 20, with what is reserved "
        f"{cost(trained, LOSS, planned)}, at δ 1e-06.\n"
    )
    day = "2030-01-01"
    assert lines[1][:2] == ["run", "rounds"]
    assert lines[2:7] == [
        ["one"],
        ["train", "2", "3", "45", "1.25", "0.02", cost(trained), day],
        ["evaluate", "1", "1", "1", "20", "1", cost(LOSS), day],
        ["two"],
        ["reserved", "1,500", "1.25", "0.02", cost(planned)],
    ]


def test_show_names_runs_whole_on_a_narrow_terminal(fedlora, path, monkeypatch):
    """``close`` asks for the name: it is never cut, whatever the terminal's width."""
    name = "a-consortium-of-many-hospitals-20300101-120000"
    ledger = Ledger(path, new_filter=RenyiFilter)
    ledger.reserve("default", name, maximum=[STEP])
    monkeypatch.setenv("COLUMNS", "60")
    assert name in fedlora("show", path)[1].split()


def test_show_of_an_account_that_nobody_used(fedlora, tmp_path):
    """It is there, without a line."""
    ledger = tmp_path / "ledger.sqlite"
    Ledger(ledger, new_filter=RenyiFilter).open_account("clients", epsilon=None, delta=1e-5)
    code, out, _ = fedlora("show", ledger)
    assert code == 0
    assert out.startswith("Account clients: ε 0 spent without limit, at δ 1e-05.\n")


def test_show_of_a_ledger_without_an_account(fedlora, tmp_path):
    """It says so, instead of explaining columns that are not there."""
    ledger = tmp_path / "ledger.sqlite"
    Ledger(ledger, new_filter=RenyiFilter)
    assert fedlora("show", ledger) == (0, f"No account is open in {ledger}.\n", "")


def test_a_run_that_is_not_in_the_ledger_is_not_closed(fedlora, path):
    """The error names those that are."""
    code, _, err = fedlora("close", path, "tow")
    assert code == 2
    assert "Run tow has reserved nothing of account default. These have: one, two." in err


@pytest.mark.parametrize(("records", "says"), [(100_001, "1/1000010"), (10**7, "1/100000000")])
def test_a_budget_with_a_delta_that_means_nothing_is_not_opened(fedlora, tmp_path, records, says):
    """δ belongs to the account; the rule is that of recipes."""
    ledger = tmp_path / "ledger.sqlite"
    code, _, err = fedlora("open", ledger, "--epsilon", 8, "--delta", 1e-6, "--records", records)
    assert code == 2
    assert f"--delta is 1e-06, but with {records} records at most {says} means anything" in err
    assert not ledger.exists()


def test_a_budget_is_opened_once_the_records_are_declared(fedlora, tmp_path):
    """With the largest δ for them, too."""
    ledger = tmp_path / "ledger.sqlite"
    code, _, err = fedlora("open", ledger, "--epsilon", 8, "--delta", 1e-6)
    assert code == 2
    assert "--records" in err
    code, out, _ = fedlora("open", ledger, "--epsilon", 8, "--delta", 1e-6, "--records", 100_000)
    assert (code, out) == (0, f"Account default: ε 8 at δ 1e-06, in {ledger}.\n")
    balance = Ledger(ledger, new_filter=RenyiFilter).balances()["default"]
    assert (balance.epsilon, balance.delta) == (8.0, 1e-6)


def test_a_run_is_closed_and_the_ledger_verified_and_exported(fedlora, path):
    """What the dead run reserved is free again; the last row says so."""
    said = "Run two of account default is closed."
    assert fedlora("close", path, "two") == (0, f"{said} What it had reserved is free again.\n", "")
    assert fedlora("close", path, "two") == (0, f"{said} It had nothing left to draw.\n", "")
    assert "reserved" not in fedlora("show", path)[1]
    _, exported, _ = fedlora("export", path)
    rows = [json.loads(line) for line in exported.splitlines()]
    assert rows[-1]["content"]["kind"] == "closure"
    assert fedlora("verify", path) == (
        0,
        f"{len(rows)} rows, whole; head {rows[-1]['hash']}\n",
        "",
    )


def test_budgets_are_opened_as_the_docs_say(fedlora, tmp_path):
    """A site's account and the aggregator's: by the names under which runs are charged."""
    text = (Path(__file__).parents[2] / "docs" / "privacy.md").read_text(encoding="utf-8")
    lines = text.replace("\\\n", "").splitlines()
    commands = [shlex.split(line, comments=True) for line in lines if "ledger open " in line]
    opened = set[str]()
    for number, (_, _, _, command, _, *options) in enumerate(commands):
        ledger = tmp_path / f"{number}.sqlite"
        assert fedlora(command, ledger, *options)[0] == 0
        opened |= Ledger(ledger, new_filter=RenyiFilter).balances().keys()
    assert opened == {"default", "clients-add-remove"}
