"""One fault after another while a deployment works: does it go on, and count each update once?

The deployment is real but for the trainer's work (``simulations.faults.one_hot``). A trial is a
fault at a seeded moment of a round. It was survived if two more rounds complete, by themselves or
with the one command that starts a host, and then each update of all rounds is in the global adapter
once, no site was refused, each site's evidence log verifies, and no site answered a question twice
and not the same. Under privacy, no round was answered that was not charged.
"""

import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from fedlora.recipe import Recipe
from simulations.faults.checks import problems, spent
from simulations.faults.faults import Fault, faults, private_faults
from simulations.faults.one_hot import recipe
from simulations.faults.scene import Scene

_ROUNDS = 12
"""Of a run; another begins when it ends, so that faults fall into that, too."""
_MOMENT = 4.0
"""Seconds after a round's end at which a fault comes at the latest: about a round."""
_AFTER = 2
"""Rounds that must complete after a fault."""
_PATIENCE = 300.0
"""Seconds in which they must."""
_LONG_EVERY = 12
"""Trials of which one is long."""
_PRIVATE_EVERY = 10
"""Trials of which one is of a run under privacy."""


def run(*, trials: int, seed: int) -> None:
    """Run the trials and print what became of each."""
    random = Random(seed)
    private = math.ceil(trials / _PRIVATE_EVERY)
    rounds = _ROUNDS + 2 * _AFTER * private  # a site that was charged twice lacks the run's last
    survived = _play(recipe(rounds=_ROUNDS), faults, random, trials=trials - private)
    print("under privacy:")
    asked = recipe(rounds=rounds, private=True)
    survived += _play(asked, private_faults, random, trials=private, queue=0)
    print(f"survivors {survived}/{trials}")
    result = {"name": "faults", "trials": trials, "survived": survived, "seed": seed}
    print(json.dumps(result | {"holds": survived == trials}))


def _play(
    asked: Recipe,
    kinds: Callable[[Scene], Sequence[Fault]],
    random: Random,
    *,
    trials: int,
    queue: int = 1,
) -> int:
    """Run trials in a deployment of their own; return how many were survived."""
    survived = 0
    with (
        tempfile.TemporaryDirectory(prefix="faults") as name,
        Scene(Path(name), asked, queue=queue) as scene,
    ):
        _await(scene, rounds=1)
        known = set[str]()
        for trial, fault in enumerate(_drawn(kinds(scene), random, trials=trials), start=1):
            print(f"{trial:4} {fault.name}", end=" ", flush=True)
            failures = _trial(scene, fault, random, known=known)
            survived += not failures
            for failure in failures:
                print(f"     {failure}", flush=True)
        if asked.privacy.unit == "example":
            answered, charged = spent(scene)
            print(f"{answered:6} rounds answered, {charged} charged: a crash never refunds")
    return survived


def _drawn(kinds: Sequence[Fault], random: Random, *, trials: int) -> list[Fault]:
    """Return as many faults as trials: each kind as often as each other, long ones seldom."""
    pools = {long: [kind for kind in kinds if kind.long is long] for long in (False, True)}
    chosen = []
    decks: dict[bool, list[Fault]] = {False: [], True: []}
    for trial in range(trials):
        long = bool(pools[True]) and trial % _LONG_EVERY == _LONG_EVERY - 1
        if not decks[long]:
            decks[long] = random.sample(pools[long], len(pools[long]))
        chosen.append(decks[long].pop())
    return chosen


def _trial(scene: Scene, fault: Fault, random: Random, *, known: set[str]) -> list[str]:
    """Do a fault, print what came of it, and return what does not hold and is not known yet."""
    began, before = time.monotonic(), scene.rounds()
    time.sleep(random.uniform(0, _MOMENT))
    hit = fault.strike(scene, random)
    healed, failures = time.monotonic(), []
    try:
        _await(scene, rounds=before + _AFTER)
    except TimeoutError as error:
        print(error, file=sys.stderr, flush=True)  # the end of each log
        failures.append(f"{_AFTER} rounds did not complete within {_PATIENCE:g} s")
    found = problems(scene)
    failures += [f"{what}: {how}" for what, how in found.items() if what not in known]
    known |= found.keys()
    took, recovery = time.monotonic() - began, time.monotonic() - healed
    verdict = "FAILED" if failures else "survived"
    print(f"({hit}): {verdict}, {recovery:.1f} of {took:.1f} s", flush=True)
    return failures


def _await(scene: Scene, *, rounds: int) -> None:
    scene.deployment.wait(lambda: scene.rounds() >= rounds, timeout=_PATIENCE)
