"""Trials: a recipe, played once, and what came of it. Each is kept in a file of its own."""

import hashlib
import json
import math
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from fedlora import atomic
from fedlora.adapter import AdapterState
from fedlora.cli.simulate import DEMO
from fedlora.errors import RunError
from fedlora.recipe import Recipe, read_recipe
from fedlora.runtime.aggregator.server import serve
from fedlora.runtime.carriers.in_process import InProcessGrid
from fedlora.runtime.comparison import losses_of, overall
from fedlora.runtime.plan import plan
from fedlora.runtime.run_folder import RunFolder
from fedlora.runtime.simulation import sites_in, start
from fedlora.runtime.site.client import app
from fedlora.runtime.site.site import Site
from simulations.studies.attacks import ATTACKS, HostileGrid, first_error

_UNFINISHED = ".trial-"
_NEVER = 10**6
"""Rounds between evaluations: at both ends only."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One recipe, with hostile clients or without."""

    variant: str
    """What is compared; trials of one variant differ in seed and attack only."""
    recipe: Recipe
    attack: str = ""
    """A name in ``ATTACKS``; none when nobody is watched for what an attack would do."""
    attackers: int = 0

    @property
    def key(self) -> str:
        """Name of what is kept of it. The code has no part in it."""
        text = f"{self.recipe.digest}/{self.attack}/{self.attackers}"
        return hashlib.sha256(text.encode()).hexdigest()

    def __str__(self) -> str:
        hostile = f", {self.attackers} {self.attack}" if self.attackers else ""
        return f"{self.variant}{hostile}, seed {self.recipe.seed}"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a trial measured; losses in nats per token, over the held-out tokens of all sites."""

    base: float
    loss: float
    """Not a number when the run stopped or diverged."""
    tail: float
    """Mean over the rounds of what the cut of the rank dropped, relative to the change."""
    bytes_up: float
    """Of a client and round, mean."""
    bytes_down: float
    """To a client in a round without evaluation."""
    error: float
    """Distance of the first global change from that of the honest alone, relative to the latter."""
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Result:
    """A trial and its outcome."""

    trial: Trial
    outcome: Outcome

    @property
    def loss(self) -> float:
        """Held-out loss at the end."""
        return self.outcome.loss

    def to_json(self) -> str:
        """Return what is published of it, as one line."""
        trial = self.trial
        facts: dict[str, Any] = {"variant": trial.variant, "seed": trial.recipe.seed}
        if trial.attack:
            facts |= {"attack": trial.attack, "attackers": trial.attackers}
        outcome = asdict(self.outcome)
        del outcome["seconds"]  # the machine's, not the study's
        shown = {key: round(value, 6) for key, value in outcome.items() if math.isfinite(value)}
        return json.dumps(facts | shown)


def study_recipe(*overrides: str, datasets: Sequence[Mapping[str, Any]] = ()) -> Recipe:
    """Return the demo's recipe for a study: other data if given, evaluated at both ends only."""
    common = ["name=study", "simulation.compare=false", f"federation.evaluate_every={_NEVER}"]
    if datasets:
        common.append(f"datasets={json.dumps(datasets)}")
    return read_recipe(DEMO, overrides=[*common, *overrides])


def play_all(trials: Sequence[Trial], *, work: Path, jobs: int) -> list[Result]:
    """Return all results, playing ``jobs`` trials at a time, those that are kept in ``work`` not.

    Each trial has one thread: two of these do more on two cores than one trial with two. One call
    at a time has ``work`` to itself.
    """
    work.mkdir(parents=True, exist_ok=True)
    for unfinished in work.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(unfinished)
    missing = {trial.key: trial for trial in trials if not _kept(trial, work).is_file()}
    done = len(trials) - len(missing)
    print(f"{done} of {len(trials)} trials are kept in {work}", flush=True)
    played = _played(list(missing.values()), work=work, jobs=jobs) if missing else ()
    for number, (trial, outcome) in enumerate(played, start=done + 1):
        change = f"{outcome.base:.3f} → {outcome.loss:.4f}"
        print(f"[{number}/{len(trials)}] {trial}: {change} ({outcome.seconds:.0f} s)", flush=True)
    return [Result(trial=trial, outcome=_read(_kept(trial, work))) for trial in trials]


def _played(trials: Sequence[Trial], *, work: Path, jobs: int) -> Iterator[tuple[Trial, Outcome]]:
    """Play the trials in processes of their own; yield each when it is finished."""
    with get_context("spawn").Pool(
        jobs,
        initializer=torch.set_num_threads,
        initargs=(1,),
        maxtasksperchild=8,  # a process keeps the data and the base of each recipe
    ) as pool:
        yield from pool.imap_unordered(partial(play_and_keep, work=work), trials)


def play_and_keep(trial: Trial, *, work: Path) -> tuple[Trial, Outcome]:
    """Play a trial in a folder that goes with it, and keep its outcome in ``work``."""
    with tempfile.TemporaryDirectory(dir=work, prefix=_UNFINISHED) as folder:
        outcome = play(trial, folder=Path(folder).resolve())
    facts = {"trial": str(trial), "recipe": trial.recipe.to_yaml(), "outcome": asdict(outcome)}
    atomic.write_file(_kept(trial, work), json.dumps(facts, indent=1))
    return trial, outcome


def play(trial: Trial, *, folder: Path) -> Outcome:
    """Play a trial in an empty folder."""
    started = time.monotonic()
    run = start(plan(trial.recipe), runs=folder)
    clients = len(trial.recipe.site_names)
    grid, sent = InProcessGrid(app, clients=clients), {}
    if trial.attack:
        grid = HostileGrid(run, attack=ATTACKS[trial.attack], attackers=trial.attackers)
        sent = grid.sent
    try:
        with sites_in(str(folder / "sites")):
            serve(grid, run.path, observe=lambda _: None)
    except RunError as stop:
        if not trial.attackers:
            raise
        print(f"{trial} stopped: {stop}", flush=True)
    error = first_error(sent, trial.recipe)
    outcome = _outcome(run, error=error, seconds=time.monotonic() - started)
    if trial.recipe.privacy.unit == "none":
        return outcome
    # A private run tells no exact loss; the study's data are public, so it looks for itself.
    base = AdapterState.initial(run.spec(), seed=trial.recipe.seed)
    return replace(outcome, base=_held_out(run, base), loss=_held_out(run, run.load().adapter))


def by_variant(results: Iterable[Result]) -> dict[str, list[Result]]:
    """Return the results of each variant, in the order in which they come."""
    variants: dict[str, list[Result]] = {}
    for result in results:
        variants.setdefault(result.trial.variant, []).append(result)
    return variants


def differences(results: Sequence[Result], others: Sequence[Result]) -> list[float]:
    """Return by how much the end loss of a variant is above that of another, seed by seed."""
    losses = {other.trial.recipe.seed: other.loss for other in others}
    return [result.loss - losses[result.trial.recipe.seed] for result in results]


def _outcome(run: RunFolder, *, error: float, seconds: float) -> Outcome:
    records = run.records()
    played = records[1:]
    complete = len(played) == run.recipe().federation.rounds
    end = losses_of(records[-1]["evaluation"]) if complete else {}
    sizes = [facts["bytes"] for record in played for facts in record["folded"].values()]
    return Outcome(
        base=overall(losses_of(records[0]["evaluation"])).loss,
        loss=overall(end).loss,
        tail=_mean([record["tail"] for record in played]),
        bytes_up=_mean(sizes),
        bytes_down=min((r["bytes_down"] / len(r["cohort"]) for r in played), default=math.nan),
        error=error,
        seconds=seconds,
    )


def _held_out(run: RunFolder, adapter: AdapterState) -> float:
    """Return the loss over the held-out tokens of all sites, measured here."""
    recipe = run.recipe()
    sites = (Site.open(recipe, name) for name in recipe.site_names)
    return overall({site.name: site.evaluate(adapter) for site in sites}).loss


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else math.nan


def _kept(trial: Trial, work: Path) -> Path:
    return work / f"{trial.key}.json"


def _read(path: Path) -> Outcome:
    return Outcome(**json.loads(path.read_text(encoding="utf-8"))["outcome"])
