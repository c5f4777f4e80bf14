"""The ledger's rules: accounts, reservations, charges, proof."""

import hashlib
import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fedlora.chained_file import ChainedFile
from fedlora.errors import BudgetError
from fedlora.privacy.charge import Charge
from fedlora.privacy.ledger import Ledger
from fedlora.privacy.ledger.ledger import LEDGER
from simulations.campaigns.ledger import StepFilter

STEP = Charge.of_steps(1, sensitivity=1.0, noise_multiplier=1.1, sampling_rate=0.02)
ROOT = Path(__file__).parents[3]
NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


def steps(count: int) -> Charge:
    return replace(STEP, steps=count)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def reopen(path: Path) -> Callable[[], Ledger]:
    """Open the same file again, as another process would."""
    return lambda: Ledger(path, new_filter=StepFilter, clock=lambda: NOON)


@pytest.fixture
def ledger(reopen: Callable[[], Ledger]) -> Ledger:
    """A ledger with one account of ten steps."""
    ledger = reopen()
    ledger.open_account("default", epsilon=10, delta=1e-6)
    return ledger


def commit(ledger: Ledger, run: str, number: int, count: int = 1, **changes):
    arguments = {"purpose": "train", "charge": steps(count), "data": "f00d"} | changes
    return ledger.commit("default", run, number=number, **arguments)


def test_a_charge_is_kept_as_it_was_made(ledger, reopen):
    """All facts come back from disk; the proof is of that row."""
    ledger.reserve("default", "r", maximum=[steps(4)])
    charge = Charge(
        unit="client",
        adjacency="replace-one",
        sensitivity=2 / 3,
        noise_multiplier=0.1 + 0.2,
        sampling_rate=1,
        steps=3,
        sampler="all",
    )
    proof = commit(ledger, "r", 7, charge=charge, purpose="evaluate")
    [row] = reopen().rows("default")
    assert row == proof.row
    assert (row.account, row.run, row.purpose, row.number) == ("default", "r", "evaluate", 7)
    assert (row.attempt, row.charge, row.data) == (1, charge, "f00d")
    assert row.time == "2030-01-01T12:00:00+00:00"


def test_skellam_noise_is_told_from_normal_noise(ledger, reopen):
    """Its granularity is in the row; steps of the two are no steps of one mechanism."""
    skellam = replace(STEP, granularity=2**20)
    ledger.reserve("default", "r", maximum=[STEP, skellam])
    commit(ledger, "r", 1, charge=skellam)
    [row] = reopen().rows("default")
    assert (row.charge, row.charge.mechanism) == (skellam, "skellam")
    assert reopen().balances()["default"].reserved == {"r": (STEP,)}
    written = [json.loads(line) for line in ledger.export().splitlines()]
    assert "granularity" not in json.dumps(written[1])[: json.dumps(written[1]).index("}")]


def test_a_proof_is_redeemed_once(ledger):
    """What it gives is what was charged; drawing again needs another charge."""
    ledger.reserve("default", "r", maximum=[steps(4)])
    proof = commit(ledger, "r", 1, 2)
    assert proof.redeem() == steps(2)
    with pytest.raises(BudgetError, match="Run r, train 1: its noise was drawn before"):
        proof.redeem()


def test_a_reservation_holds_its_part_of_the_budget(ledger, reopen):
    """Another run gets what is left, also in another process, and no more."""
    ledger.reserve("default", "r", maximum=[steps(3), steps(3)])
    with pytest.raises(BudgetError, match=r"Run s asks for more.*ε 10 at δ 1e-06.*reservation: r"):
        reopen().reserve("default", "s", maximum=[steps(5)])
    reopen().reserve("default", "s", maximum=[steps(4)])
    assert ledger.balances()["default"].reserved == {"r": (steps(6),), "s": (steps(4),)}


def test_a_run_draws_on_its_reservation(ledger):
    """Its rounds need no leave of the filter while the reservation lasts, however full it is."""
    ledger.reserve("default", "r", maximum=[steps(10)])
    for number in range(5):
        commit(ledger, "r", number, 2)
    balance = ledger.balances()["default"]
    assert (balance.spent, balance.reserved) == ((steps(10),), {})
    with pytest.raises(BudgetError, match="Run r, train 5: its reservation is used up"):
        commit(ledger, "r", 5)


def test_a_reservation_is_kept_when_the_accountant_gets_stricter(ledger, path):
    """What was promised to a run stays so; new runs get nothing."""
    ledger.reserve("default", "r", maximum=[steps(2)])
    strict = Ledger(
        path, new_filter=lambda *, epsilon, delta: StepFilter(epsilon=epsilon / 100, delta=delta)
    )
    commit(strict, "r", 1, 2)
    with pytest.raises(BudgetError, match="used up"):
        commit(strict, "r", 2)
    with pytest.raises(BudgetError, match="Run s asks for more"):
        strict.reserve("default", "s", maximum=[STEP])


def test_a_round_played_again_is_a_new_charge(ledger):
    """Its attempts are counted; when the reservation is used up, the budget's rest is drawn on."""
    ledger.reserve("default", "r", maximum=[steps(4)])
    attempts = [commit(ledger, "r", number, 2).row.attempt for number in (1, 1, 2, 2, 1)]
    assert attempts == [1, 2, 1, 2, 3]
    assert ledger.balances()["default"].spent == (steps(10),)
    with pytest.raises(BudgetError, match="used up"):
        commit(ledger, "r", 1)


def test_a_reservation_holds_for_any_sensitivity(ledger):
    """What a step costs is decided by its noise over its sensitivity; the row keeps the latter."""
    ledger.reserve("default", "r", maximum=[steps(10)])
    for number, sensitivity in enumerate((1.0, 0.3, 7.0)):
        commit(ledger, "r", number, 3, charge=replace(steps(3), sensitivity=sensitivity))
    balance = ledger.balances()["default"]
    assert (balance.spent, balance.reserved) == ((steps(9),), {"r": (STEP,)})
    assert [row.charge.sensitivity for row in ledger.rows("default")] == [1.0, 0.3, 7.0]


def test_charges_of_a_round_are_counted(ledger, reopen):
    """Of that account, run, purpose and number alone; of what is unknown there are none."""
    ledger.reserve("default", "r", maximum=[steps(10)])
    for purpose, number in (("train", 1), ("train", 1), ("train", 2), ("evaluate", 1)):
        commit(ledger, "r", number, purpose=purpose)

    def count(account: str, run: str, purpose: str, number: int) -> int:
        return reopen().charges_of(account, run, purpose=purpose, number=number)

    assert count("default", "r", "train", 1) == 2
    assert count("default", "r", "train", 2) == count("default", "r", "evaluate", 1) == 1
    assert count("default", "r", "evaluate", 2) == 0
    assert count("default", "s", "train", 1) == count("other", "r", "train", 1) == 0


def test_what_goes_past_the_reservation_leaves_others_theirs(ledger):
    """The reservation of another open run is not the budget's rest; after its end it is."""
    ledger.reserve("default", "r", maximum=[steps(4)])
    ledger.reserve("default", "s", maximum=[steps(5)])
    with pytest.raises(BudgetError, match="used up"):
        commit(ledger, "r", 1, 6)
    commit(ledger, "r", 1, 5)
    with pytest.raises(BudgetError, match="used up"):
        commit(ledger, "r", 2)
    ledger.close("default", "s")
    commit(ledger, "r", 2)


def test_another_mechanism_is_not_what_was_reserved(ledger):
    """Less noise than planned needs the filter's leave, beside the plan that still stands."""
    ledger.reserve("default", "r", maximum=[steps(9)])
    louder = replace(STEP, noise_multiplier=0.5)
    commit(ledger, "r", 1, charge=louder)
    with pytest.raises(BudgetError, match="used up"):
        commit(ledger, "r", 2, charge=louder)
    commit(ledger, "r", 2, 9)


def test_training_and_evaluation_are_numbered_apart(ledger):
    """The third query is no second attempt of the third round."""
    ledger.reserve("default", "r", maximum=[steps(4)])
    proofs = [commit(ledger, "r", 3, purpose=purpose) for purpose in ("train", "evaluate")]
    assert [proof.row.attempt for proof in proofs] == [1, 1]


def test_closing_frees_what_was_not_drawn(ledger, reopen):
    """What was drawn stays spent; the run can draw no more; closing again does nothing."""
    ledger.reserve("default", "r", maximum=[steps(10)])
    commit(ledger, "r", 1, 4)
    ledger.close("default", "r")
    closed = ledger.head()
    reopen().close("default", "r")
    assert ledger.head() == closed
    for draw in (commit, lambda ledger, run, _: reserve_again(ledger, run)):
        with pytest.raises(BudgetError, match="Run r is closed"):
            draw(ledger, "r", 2)
    with pytest.raises(BudgetError, match="Run s asks for more"):
        ledger.reserve("default", "s", maximum=[steps(7)])
    ledger.reserve("default", "s", maximum=[steps(6)])


def reserve_again(ledger: Ledger, run: str) -> None:
    ledger.reserve("default", run, maximum=[steps(10)])


def test_nothing_is_refunded_after_a_stop(ledger, reopen):
    """A run that goes on reserves the same again for nothing, and keeps what it had left."""
    ledger.reserve("default", "r", maximum=[steps(6)])
    commit(ledger, "r", 1, 4)
    head = ledger.head()
    again = reopen()
    again.reserve("default", "r", maximum=[steps(6)])
    assert again.head() == head
    balance = again.balances()["default"]
    assert (balance.spent, balance.reserved) == ((steps(4),), {"r": (steps(2),)})
    with pytest.raises(BudgetError, match="Run r has reserved another maximum"):
        again.reserve("default", "r", maximum=[steps(5)])


def test_what_was_not_asked_for_is_refused(ledger):
    """A run without a reservation and an account that nobody opened can draw nothing."""
    with pytest.raises(BudgetError, match="Run r has reserved nothing of account default"):
        commit(ledger, "r", 1)
    with pytest.raises(BudgetError, match="Run r has reserved nothing"):
        ledger.close("default", "r")
    for ask in (ledger.rows, lambda name: ledger.reserve(name, "r", maximum=[STEP])):
        with pytest.raises(BudgetError, match="Account other is not open; these are: default"):
            ask("other")
    assert ledger.rows("default") == []


def test_a_budget_is_for_good(ledger):
    """Opening again with the same one does nothing; with another one it is refused."""
    head = ledger.head()
    ledger.open_account("default", epsilon=10, delta=1e-6)
    assert ledger.head() == head
    for epsilon, delta in ((11, 1e-6), (10, 1e-5), (None, 1e-6)):
        with pytest.raises(BudgetError, match=r"is open with ε 10 and δ 1e-06; asked for"):
            ledger.open_account("default", epsilon=epsilon, delta=delta)


def test_accounts_are_apart(ledger):
    """One that is used up leaves the other as it was, for the same run too."""
    ledger.open_account("second", epsilon=3, delta=1e-6)
    ledger.reserve("default", "r", maximum=[steps(10)])
    ledger.reserve("second", "r", maximum=[steps(3)])
    commit(ledger, "r", 1, 10)
    assert ledger.balances()["second"].reserved == {"r": (steps(3),)}
    assert ledger.rows("second") == []


def test_an_account_without_limit_lets_each_run_draw_what_it_reserved(ledger):
    """Whatever that is; a round that is played again once all is drawn is refused."""
    ledger.open_account("free", epsilon=None, delta=1e-6)
    ledger.reserve("free", "r", maximum=[steps(10**6)])
    proof = ledger.commit("free", "r", purpose="train", number=1, charge=steps(10**6), data="")
    assert ledger.rows("free") == [proof.row]
    with pytest.raises(BudgetError, match="account free has no limit that would allow more"):
        ledger.commit("free", "r", purpose="train", number=1, charge=steps(1), data="")
    assert ledger.rows("free") == [proof.row]
    ledger.reserve("free", "other", maximum=[steps(10**6)])


@pytest.mark.parametrize(
    ("epsilon", "delta"), [(0, 0.1), (-1, 0.1), (float("nan"), 0.1), (float("inf"), 0.1), (1, 0)]
)
def test_a_budget_has_sound_numbers(ledger, epsilon, delta):
    """An infinite ε is no budget: no limit is said by none."""
    with pytest.raises(BudgetError, match=r"Account odd: [εδ] must"):
        ledger.open_account("odd", epsilon=epsilon, delta=delta)


@pytest.mark.parametrize(
    "changes",
    [
        {"noise_multiplier": 0.0},
        {"noise_multiplier": float("nan")},
        {"noise_multiplier": float("inf")},
        {"sensitivity": -1.0},
        {"sampling_rate": 1.01},
        {"sampling_rate": 0.0},
        {"steps": 0},
        {"steps": -3},
    ],
    ids=str,
)
def test_a_charge_has_sound_numbers(ledger, changes):
    """No charge refunds steps or escapes the accountant as NaN; the message names the number."""
    ledger.reserve("default", "r", maximum=[steps(4)])
    odd = replace(STEP, **changes)
    with pytest.raises(BudgetError, match=f"its {next(iter(changes))} is"):
        commit(ledger, "r", 1, charge=odd)
    with pytest.raises(BudgetError, match=f"its {next(iter(changes))} is"):
        ledger.reserve("default", "s", maximum=[odd])


def test_two_processes_share_one_account(ledger, path):
    """Both draw past their reservations at once: every step of the budget is given out once."""
    code = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_ledger import BudgetError, Ledger, StepFilter, commit, steps

ledger, run, drawn = Ledger(Path({str(path)!r}), new_filter=StepFilter), sys.argv[1], 0
ledger.reserve("wide", run, maximum=[steps(1)])
print("ready", flush=True)
sys.stdin.readline()
try:
    while True:
        ledger.commit("wide", run, purpose="train", number=1, charge=steps(1), data="")
        drawn += 1
except BudgetError:
    print(drawn)
"""
    ledger.open_account("wide", epsilon=60, delta=1e-6)
    command = [sys.executable, "-c", code]
    processes = [
        subprocess.Popen(
            [*command, run], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        for run in ("r", "s")
    ]
    assert [process.stdout.readline() for process in processes] == ["ready\n", "ready\n"]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    drawn = [int(process.communicate(timeout=60)[0]) for process in processes]
    assert sum(drawn) == 60
    attempts = [(row.run, row.attempt) for row in ledger.rows("wide")]
    assert sorted(attempts) == [
        (run, attempt + 1) for run, n in zip("rs", drawn, strict=True) for attempt in range(n)
    ]
    ledger.verify()


def test_a_ledger_and_mirror_restored_together_are_refused(ledger, path, reopen):
    """An open ledger remembers where it was; after a restart only a receipt can tell."""
    files = [path, path.with_name(f"{path.name}.head")]
    yesterday = [file.read_bytes() for file in files]
    ledger.reserve("default", "r", maximum=[steps(2)])
    commit(ledger, "r", 1)
    receipt = ledger.head()
    for file, content in zip(files, yesterday, strict=True):
        file.write_bytes(content)
    with pytest.raises(BudgetError, match=r"older .* it has 1 rows, and this process has seen 3"):
        ledger.balances()
    again = reopen()
    again.require_not_older(again.head())
    with pytest.raises(BudgetError, match=r"older .* it has 1 rows, and the aggregator has seen 3"):
        again.require_not_older(receipt)


def test_a_broken_ledger_charges_nothing(ledger, path, reopen):
    """It does not open; one that is open finds what was changed when it verifies."""
    ledger.reserve("default", "r", maximum=[steps(2)])
    commit(ledger, "r", 1)
    ledger.head()
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE rows SET content = replace(content, 'e-06', 'e-05')")
    for use in (reopen, ledger.verify, ledger.export, lambda: ledger.rows("default")):
        with pytest.raises(BudgetError, match="the ledger is broken at row 1"):
            use()


@pytest.mark.parametrize("text", ["[]", "3", "{}", "{", '{"kind":"refund"}', '{"kind":"closure"}'])
def test_a_row_of_a_newer_version_is_refused(ledger, path, reopen, text):
    """What is not understood might be a charge."""
    with ChainedFile(path, LEDGER).transaction() as chain:
        chain.append(text)
    with pytest.raises(BudgetError, match=r"row 2 says what this version .* Use the version that"):
        reopen()


def test_equal_calls_make_equal_chains(tmp_path):
    """At equal times the hashes are equal; this one is of rows that were written by hand."""
    heads = []
    for name in ("one", "two"):
        ledger = Ledger(tmp_path / name, new_filter=StepFilter, clock=lambda: NOON)
        ledger.open_account("default", epsilon=10.0, delta=1e-6)
        ledger.reserve("default", "r", maximum=[steps(2)])
        commit(ledger, "r", 1)
        ledger.close("default", "r")
        heads.append(ledger.head())
    assert heads[0] == heads[1]
    assert heads[0].count == 4
    assert heads[0].hash == "4e14d40636fb45f74aa04d369c1866c00ef091a62619c621f5821b73129dbf8e"


def test_the_export_can_be_checked_without_us(ledger):
    """Each line's hash is SHA-256 over the last line's and the content as it stands there."""
    ledger.reserve("default", "schön", maximum=[steps(2)])
    commit(ledger, "schön", 1)
    last = "0" * 64
    lines = ledger.export().splitlines()
    for number, line in enumerate(lines, start=1):
        facts = json.loads(line)
        content = line.partition('"content":')[2][:-1]
        assert facts["hash"] == hashlib.sha256((last + content).encode()).hexdigest()
        assert facts["row"] == number
        last = facts["hash"]
    assert last == ledger.head().hash
    assert [json.loads(line)["content"]["kind"] for line in lines] == [
        "account",
        "reservation",
        "charge",
    ]
