"""Kills around the writes of a privacy ledger: does it ever know of less than was released?

In each trial two processes share one account. Each reserves, commits, and appends what it releases
to a file of its own, round after round, until a kill -9 ends it: from outside at any moment, or by
its own hand just before the mirror is written, or between a commit and its release. Then the ledger
must open, its chain must hold, every release must have its charge, and the budget must not be
overdrawn. The filter only counts steps, so that a worker starts fast.
"""

import itertools
import json
import multiprocessing
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkProcess
from pathlib import Path

from fedlora.errors import BudgetError, FedloraError
from fedlora.privacy.charge import Charge
from fedlora.privacy.ledger import Ledger

ANY_MOMENT, BEFORE_MIRROR, BEFORE_RELEASE = FATES = (
    "at any moment",
    "between commit and mirror",
    "between commit and release",
)

_ACCOUNT = "default"
_ROUNDS = 3
"""Rounds that a run reserves; each third is played again."""
_LAST_MOMENT = 0.5
"""Seconds after which a worker is killed from outside at the latest: some seven commits."""
_PATIENCE = 60
"""Seconds after which a worker that should have ended itself counts as hanging."""
_STEP = Charge.of_steps(1, sensitivity=1.0, noise_multiplier=1.0, sampling_rate=0.01)
_RESERVED = (_STEP,) * _ROUNDS
_FORK = multiprocessing.get_context("fork")  # a worker then starts with everything imported

Rounds = Counter[tuple[str, int, int]]
"""Run, round and attempt of each release or charge."""


@dataclass(frozen=True, kw_only=True)
class _Worker:
    """What one of a trial's two processes does, and how it ends."""

    name: str
    run: str
    """What its runs' names begin with; both may use the same."""
    fate: str
    write: int
    """Which write of the mirror, or which release, it does not live to see."""
    moment: float
    """Seconds after which it is killed from outside, if that is its fate."""


class StepFilter:
    """Allows as many steps as ε says: a stand-in whose arithmetic a reader can do."""

    def __init__(self, *, epsilon: float, delta: float) -> None:  # noqa: ARG002 - as RenyiFilter
        self._most = epsilon

    def allows(self, charges: Sequence[Charge]) -> bool:
        """Whether these are few enough."""
        return sum(charge.steps for charge in charges) <= self._most


def run(*, trials: int, seed: int) -> None:
    """Run the trials and print what became of them."""
    generator = random.Random(seed)
    released, charged, killed = 0, 0, Counter[str]()
    survived = 0
    for trial in range(trials):
        budget, workers = generator.randint(_ROUNDS, 20), _two_workers(generator)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            failures = _play(folder, workers, budget=budget, killed=killed)
            releases = _released(folder)
            charges = _charged(folder, releases, budget=budget, failures=failures)
        for failure in failures:
            print(f"trial {trial}: {failure}")
        survived += not failures
        released += releases.total()
        charged += charges.total()
    for fate in FATES:
        print(f"{killed[fate]:6} killed {fate}")
    print(f"{released:6} rounds released, {charged} charged: a crash never refunds")
    holds = survived == trials and released > 0 and killed.total() > 0
    result = {"name": "ledger", "trials": trials, "survived": survived, "seed": seed}
    print(json.dumps(result | {"holds": holds}))


def _two_workers(generator: random.Random) -> list[_Worker]:
    shared = generator.random() < 0.5
    return [
        _Worker(
            name=name,
            run="both" if shared else name,
            fate=generator.choice(FATES),
            write=generator.randint(1, 6),
            moment=generator.uniform(0, _LAST_MOMENT),
        )
        for name in ("one", "two")
    ]


def _play(
    folder: Path, workers: Sequence[_Worker], *, budget: int, killed: Counter[str]
) -> list[str]:
    """Let both workers run to their ends; return what went wrong, and count the kills."""
    processes = {
        worker: _FORK.Process(target=_work, args=(folder, worker, budget)) for worker in workers
    }
    started = time.monotonic()
    for process in processes.values():
        process.start()
    for worker in sorted(workers, key=lambda each: each.moment):
        if worker.fate == ANY_MOMENT:
            time.sleep(max(0, started + worker.moment - time.monotonic()))
            processes[worker].kill()
    failures = []
    for worker, process in processes.items():
        code = _exit_code(process)
        killed[worker.fate] += code == -signal.SIGKILL
        if code not in {0, -signal.SIGKILL}:
            failures.append(f"worker {worker.name} ended with exit code {code}")
    return failures


def _exit_code(process: ForkProcess) -> int | None:
    """Return how a worker ended; none if it had to be ended because it hung."""
    process.join(_PATIENCE)
    code = process.exitcode
    process.kill()
    process.join()
    return code


def _work(folder: Path, worker: _Worker, budget: int) -> None:
    """Release round after round until the end, or until the budget is used up."""
    if worker.fate == BEFORE_MIRROR:
        _die_at_mirror(worker.write)
    ledger = _open(folder)
    ledger.open_account(_ACCOUNT, epsilon=budget, delta=1e-6)
    number = 0
    with (folder / f"{worker.name}.released").open("ab", buffering=0) as file:
        for count in itertools.count(1):
            run = f"{worker.run}-{number // _ROUNDS}"
            try:
                ledger.reserve(_ACCOUNT, run, maximum=_RESERVED)
                proof = ledger.commit(
                    _ACCOUNT, run, purpose="train", number=number, charge=_STEP, data=""
                )
            except BudgetError:
                ledger.verify()  # an account that is used up is fine, a ledger that is not is not
                return
            if worker.fate == BEFORE_RELEASE and count == worker.write:
                _die()
            proof.redeem()
            file.write(json.dumps([run, number, proof.row.attempt]).encode() + b"\n")
            os.fsync(file.fileno())
            if count % _ROUNDS:
                number += 1
            if number % _ROUNDS == 0 and worker.run == worker.name:
                ledger.close(_ACCOUNT, run)


def _die_at_mirror(write: int) -> None:
    """Be killed where the mirror is put in place for the ``write``-th time."""
    replace, writes = os.replace, itertools.count(1)

    def replace_or_die(source: str, target: str) -> None:
        if next(writes) == write:
            _die()
        replace(source, target)

    os.replace = replace_or_die  # type: ignore[assignment] # nothing else is replaced here


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _open(folder: Path) -> Ledger:
    return Ledger(folder / "ledger.sqlite", new_filter=StepFilter)


def _released(folder: Path) -> Rounds:
    lines = (line for path in folder.glob("*.released") for line in path.read_bytes().splitlines())
    return Counter(tuple(json.loads(line)) for line in lines)


def _charged(folder: Path, releases: Rounds, *, budget: int, failures: list[str]) -> Rounds:
    """Return what the ledger says after the kills; add to ``failures`` what it must not say."""
    try:
        ledger = _open(folder)
        ledger.verify()
        opened = _ACCOUNT in ledger.balances()  # else both were killed before
        rows = ledger.rows(_ACCOUNT) if opened else ()
    except FedloraError as error:
        failures.append(f"the ledger does not open: {error}")
        return Counter()
    charges: Rounds = Counter((row.run, row.number, row.attempt) for row in rows)
    if missing := releases - charges:
        failures.append(f"released and not charged: {sorted(missing)}")
    if charges.total() > budget:
        failures.append(f"charged {charges.total()} steps, with a budget of {budget}")
    return charges
