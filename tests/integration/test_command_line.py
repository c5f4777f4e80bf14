"""The command line as its user meets it: exit codes, messages, what stays behind."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fedlora.runtime.site.site import Site


@pytest.fixture
def fedlora(command_line, monkeypatch, tmp_path):
    """Run ``fedlora`` with arguments in an empty folder; return exit code, output and errors."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return command_line


@pytest.fixture
def recipe(recipe_text, tmp_path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(recipe_text)
    return path


def test_help_imports_nothing_heavy():
    """Help is instant because neither torch nor Flower nor pydantic is imported for it."""
    code = (
        "import sys; sys.argv = ['fedlora', '--help']\n"
        "from fedlora.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'flwr', 'pydantic', 'transformers'} & set(sys.modules)))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "simulate" in output.stdout
    assert output.stdout.splitlines()[-1] == "[]"


def test_a_run_ends_with_the_table_and_the_next_step(fedlora, recipe):
    """The summary compares base and federated and names the release and the report."""
    code, out, _ = fedlora("simulate", recipe, "federation.rounds=1")
    assert code == 0
    for text in ("north", "south", "federated", "release", "report.html", "fedlora chat"):
        assert text in out


def test_a_dry_run_writes_nothing(fedlora, recipe):
    """--dry-run prints recipe, trainable parameters, bytes and memory, and leaves no file."""
    code, out, _ = fedlora("simulate", recipe, "--dry-run")
    assert code == 0
    for text in ("learning_rate: 0.01", "145,920", "memory", "583.7 kB down"):
        assert text in out
    assert list(Path.cwd().iterdir()) == []


NO_ANSWER = '{"messages": [{"role": "user", "content": "hello"}]}'

BAD_INPUTS = {
    "unknown key": (["learning_rat=1"], ["learning_rat", "learning_rate"]),
    "wrong type": (["lora_r=eight"], ["lora_r", "integer", "eight"]),
    "missing data": (["datasets=[{path: gone.jsonl}]"], ["gone.jsonl"]),
    "no base model": (["base_model=/models/none"], ["/models/none"]),
    "cohort too large": (["federation.cohort_size=9"], ["cohort_size", "9", "2 sites"]),
    "no such module": (["lora_target_modules=[q_prj]"], ["q_prj", "q_proj"]),
}

BAD_DATA = {
    "empty file": ("", ["empty"]),
    "broken line": ('{"text": "a"}\n{oops', ["line 2"]),
    "no assistant": (NO_ANSWER, ["line 1", "assistant"]),
    "unknown format": ('{"foo": 1}', ["foo", "messages"]),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_is_one_message_and_exit_code_2(fedlora, recipe, case):
    """The message names what is wrong; there is no traceback and nothing is written."""
    arguments, expected = BAD_INPUTS[case]
    code, _, err = fedlora("simulate", recipe, *arguments)
    assert code == 2
    assert "Traceback" not in err
    for text in expected:
        assert text in err
    assert not list(Path.cwd().iterdir())


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_is_named_with_its_line(fedlora, recipe, tmp_path, case):
    """The message names the file, the line and what was expected; nothing is written."""
    content, expected = BAD_DATA[case]
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    code, _, err = fedlora("simulate", recipe, f"datasets=[{{path: {path}}}]")
    assert code == 2
    for text in ["rows.jsonl", *expected]:
        assert text in err
    assert not list(Path.cwd().iterdir())


@pytest.mark.parametrize("arguments", [["nowhere.yaml"], ["--resume", "nowhere.yaml"]])
def test_what_is_not_there_is_named(fedlora, arguments):
    """A recipe or run that does not exist: its name, exit code 2."""
    code, _, err = fedlora("simulate", *arguments)
    assert code == 2
    assert "nowhere.yaml" in err


def test_a_place_that_cannot_be_written_is_named(fedlora, recipe):
    """--runs below a file: one message with the path, exit code 2."""
    Path("taken").write_text("a file")
    code, _, err = fedlora("simulate", recipe, "--runs", "taken")
    assert code == 2
    assert "taken" in err
    assert "cannot be written" in err
    assert [path.name for path in Path.cwd().iterdir()] == ["taken"]


def test_ctrl_c_says_how_to_go_on(fedlora, recipe, monkeypatch):
    """Ctrl-C ends with exit code 130 and the command that resumes, which completes the run."""
    train_round = Site.train_round

    def interrupted(self, received, **keys):
        if keys["number"] == 2:
            raise KeyboardInterrupt
        return train_round(self, received, **keys)

    monkeypatch.setattr(Site, "train_round", interrupted)
    code, _, err = fedlora("simulate", recipe)
    assert code == 130
    (run,) = filter(Path.is_dir, Path("runs").iterdir())
    assert f"fedlora simulate --resume {run}" in err
    monkeypatch.setattr(Site, "train_round", train_round)
    code, out, _ = fedlora("simulate", "--resume", run)
    assert code == 0
    assert "federated" in out


def test_chat_answers_with_base_and_adapter(fedlora, recipe):
    """After a run, ``fedlora chat`` shows both answers to a question."""
    fedlora("simulate", recipe, "federation.rounds=1")
    (run,) = filter(Path.is_dir, Path("runs").iterdir())
    code, out, _ = fedlora("chat", run, "--ask", "What is a fig?", "--max-new-tokens", "8")
    assert code == 0
    assert "What is a fig?" in out
    assert "base" in out
    assert "runs/small-" in out


def test_the_last_override_wins(fedlora, recipe):
    """A key given twice on the command line takes the last value."""
    code, out, _ = fedlora("simulate", recipe, "lora_r=2", "lora_r=4", "--dry-run")
    assert code == 0
    assert "lora_r: 4" in out


CLIENTS = (
    "privacy={unit: client, epsilon: 8, delta: 1e-4, clip_norm: 0.5}",
    "federation={rounds: 1, local_steps: 1, evaluate_every: 0}",
)
MANY = (
    "datasets=[{path: x}]",
    "federation={rounds: 20, sites: 1000, cohort_size: 100, evaluate_every: 0}",
)


def test_a_plan_for_clients_says_against_whom_each_budget_holds(fedlora, recipe):
    """Sensitivity, neighbours, and with Poisson cohorts a second, smaller ε."""
    poisson = "federation.cohort_sampling=poisson"
    code, out, _ = fedlora("privacy", "plan", recipe, *CLIENTS, *MANY, poisson)
    assert code == 0
    assert "One client more or less, sensitivity 0.5 (clip norm 0.5)" in out
    assert "100 of 1000 clients on average (Poisson cohorts)" in out
    rows = [line.split() for line in out.splitlines() if line[:2] in {"1 ", "3 ", "8 ", "∞ "}]
    assert [row[0] for row in rows] == ["1", "3", "8", "∞"]
    for row in rows[:-1]:
        promised, readers, noise, _, signal, account = map(float, row)
        assert 0 < readers < promised < account
        assert noise > 1
        assert signal > 0.05
    code, out, _ = fedlora("privacy", "plan", recipe, *CLIENTS, *MANY)
    assert code == 0
    assert "One client in another's place, sensitivity 1 (clip norm 0.5)" in out
    assert "for readers" not in out


def test_a_run_without_evaluations_shows_no_losses(fedlora, recipe):
    """Neither in the plan nor by round: there are none, and no bytes to evaluate."""
    code, out, _ = fedlora("simulate", recipe, "federation.rounds=1", "federation.evaluate_every=0")
    assert code == 0
    assert "to evaluate" not in out
    (header,) = (line.split() for line in out.splitlines() if line.startswith("round "))
    assert header == ["round", "updates", "down", "up", "time"]
    assert "No held-out loss was measured." in out


def test_no_heading_of_a_plan_is_cut_on_a_narrow_terminal(fedlora, recipe, monkeypatch):
    """The sites' names give way, however long the numbers are."""
    monkeypatch.setenv("COLUMNS", "80")
    tight = "privacy={unit: example, epsilon: 0.25, delta: 1e-4, records: 1000}"
    _, out, _ = fedlora("privacy", "plan", recipe, tight, "federation.evaluate_every=0")
    assert "signal/noise  of the run  in an account" in out


@pytest.mark.parametrize("command", [["privacy", "plan"], ["privacy", "audit"], ["simulate"]])
def test_one_recipe_is_expected_in_any_place(fedlora, recipe, command):
    """Keys may come before it; two recipes, or keys alone where there is no demo, are refused."""
    says = "One recipe, a YAML file, is expected beside keys; given: "
    code, _, err = fedlora(*command, "one.yaml", "two.yaml")
    assert (code, f"{says}one.yaml, two.yaml." in err) == (2, True)
    code, _, err = fedlora(*command, "seed=x", recipe)
    assert (code, "override seed=x" in err) == (2, True)
    if command != ["simulate"]:
        code, _, err = fedlora(*command, "seed=1")
        assert (code, f"{says}none." in err) == (2, True)


def test_a_plan_refuses_what_noise_drowns(fedlora, recipe):
    """Below the table that shows it, with what to change; a simulation says so and plays it."""
    code, out, err = fedlora("privacy", "plan", recipe, *CLIENTS)
    assert code == 2
    assert "signal/noise" in out
    assert "The noise drowns all that could be learned" in err
    assert "Take larger cohorts" in err
    code, out, _ = fedlora("simulate", recipe, *CLIENTS, "--dry-run")
    assert code == 0
    assert "The noise drowns all that could be learned" in out
    few = "privacy={unit: example, epsilon: 0.01, delta: 1e-3, records: 20}"
    code, _, err = fedlora("privacy", "plan", recipe, few, "federation.evaluate_every=0")
    assert code == 2
    assert "Take larger batches, more records" in err
    code, _, err = fedlora("privacy", "plan", recipe)
    assert code == 2
    assert "privacy.unit is none, so nobody adds noise" in err


def test_the_aggregators_ledger_is_read_like_a_sites(fedlora, recipe):
    """It counts all runs of its folder, apart by what their neighbours are, and can be limited."""
    budget = ("--delta", "1e-4", "--records", "10", "--epsilon")
    for account, epsilon in (("clients-replace-one", "30"), ("clients-add-remove", "99")):
        opened = ("--account", account, *budget, epsilon)
        assert fedlora("privacy", "ledger", "open", "runs/ledger.sqlite", *opened)[0] == 0
    drawn, poisson = "federation.cohort_size=1", "federation.cohort_sampling=poisson"
    for more in ((), (drawn,), (drawn, poisson)):
        assert fedlora("simulate", recipe, *CLIENTS, *more)[0] == 0
    code, shown, _ = fedlora("privacy", "ledger", "show", "runs/ledger.sqlite")
    assert code == 0
    assert re.search(r"Account clients-add-remove: ε \S+ spent of 99, at δ 0.0001", shown)
    assert re.search(r"Account clients-replace-one: ε \S+ spent of 30, at δ 0.0001", shown)
    runs = {path.name for path in Path("runs").iterdir() if path.is_dir()}
    assert len(runs) == 3
    assert all(run in shown for run in runs)
    assert len(re.findall("train +1 +1 +1 ", shown)) == 3
    code, verified, _ = fedlora("privacy", "ledger", "verify", "runs/ledger.sqlite")
    assert code == 0
    assert "8 rows, whole" in verified
    code, exported, _ = fedlora("privacy", "ledger", "export", "runs/ledger.sqlite")
    rows = [json.loads(line)["content"] for line in exported.splitlines()]
    charges = [row for row in rows if row["kind"] == "charge"]
    assert {row["run"] for row in charges} == runs
    assert {row["charge"]["unit"] for row in charges} == {"client"}
