"""An audit: a private recipe is played with canaries, and attacked.

Canaries are played at one site, for the steps of all rounds, one round after another: what others
send comes from outside, and what the aggregator makes of the updates tells no more than they do.
Membership is inferred from what is published: by the recipe, and by the same recipe without
privacy.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from fedlora.adapter import AdapterState
from fedlora.errors import RecipeError, RunError
from fedlora.privacy.accounting.calibration import epsilon
from fedlora.privacy.audit.canaries import Canaries, CanaryDpSgd
from fedlora.privacy.audit.curve import contradicted, curve_of
from fedlora.privacy.audit.membership import Membership
from fedlora.privacy.audit.one_run import (
    Guesses,
    best_guesses,
    largest_lower_bound,
    numbers_of_guesses,
)
from fedlora.privacy.charge import Charge
from fedlora.recipe import Recipe
from fedlora.runtime import simulation
from fedlora.runtime.account import noise_stream
from fedlora.runtime.beginning import beginning_of
from fedlora.runtime.charges import training_charge
from fedlora.runtime.events import Observer
from fedlora.runtime.plan import plan
from fedlora.runtime.site.site import Site

BOUND, CURVE = 0.95, 0.99
"""Confidence of a lower bound on ε, and of a contradiction to an accountant's curve."""
_MOST_CANARIES = 20_000
"""More would cost time and, at a δ of 1e-5, show no more."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """What is known after some rounds."""

    round: int
    steps: int
    accounted: float
    """ε of the steps so far, as the accountant says."""
    shown: float
    """ε of which the canaries show that it is at least this, at ``BOUND``, for these steps."""
    tries: Sequence[Guesses]


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What an audit found."""

    recipe: Recipe
    site: str
    canaries: int
    noise_off: bool
    """Whether the site added no noise, to show that the audit sees it."""
    points: Sequence[Point]
    most: float
    """The largest lower bound that right guesses alone would have shown."""
    could_catch: bool
    """Whether right guesses alone would have been caught."""
    caught: bool
    """Whether the lower bound is above what the accountant says, or the guesses contradict its
    curve."""
    membership: Mapping[str, Membership] = field(default_factory=dict)
    """With privacy as the recipe says, and without; empty where it was not tried."""

    @property
    def end(self) -> Point:
        """What is known after all rounds."""
        return self.points[-1]


def require_auditable(recipe: Recipe, site: str) -> None:
    """Do nothing if the recipe promises what an audit can look for.

    Raises:
        RecipeError: it does not.
    """
    unit = recipe.privacy.unit
    if unit == "none":
        raise RecipeError(
            "privacy.unit is none: nothing is promised that an audit could find broken. Set "
            "privacy.unit=example, and epsilon, delta and records."
        )
    if unit == "client":
        raise RecipeError(
            "privacy.unit is client, but the audit hides its canaries among a site's records: set "
            "privacy.unit=example."
        )
    if recipe.privacy.clip_quantile is not None:
        raise RecipeError(
            "Canaries are always clipped, so a clip norm that follows the records would follow "
            "them: audit with privacy.clip_quantile=null."
        )
    if recipe.federation.facts.personal:
        raise RecipeError(
            f"federation.method {recipe.federation.method} publishes no adapter for all, so there "
            "is none to attack: audit with another method."
        )
    if site not in recipe.site_names:
        raise RecipeError(f"The recipe has no site {site}, only {', '.join(recipe.site_names)}.")


def play_canaries(
    recipe: Recipe,
    site: str,
    *,
    noise_off: bool = False,
    observe: Callable[[Point], None] = lambda _: None,
) -> Audit:
    """Play a site's rounds with canaries among its records.

    Nothing is charged to any ledger: no record is protected by what is drawn here, and nothing of
    it is published.

    Args:
        recipe: a planned one that is auditable.
        site: whose rows are trained on.
        noise_off: add no noise.
        observe: is told of each round.

    Raises:
        BudgetError: no noise keeps the recipe's promise.
        RunError: the site's own self-test failed.
    """
    canaries = Canaries(
        min(_MOST_CANARIES, *_trained_numbers(recipe, site)),
        promised=training_charge(recipe, site, steps=recipe.federation.local_steps),
        source=noise_stream(recipe, f"audit/{site}/coins"),
    )
    points = []
    for point in _rounds(recipe, site, canaries, noise_off=noise_off):
        observe(point)
        points.append(point)
    end, count = points[-1], len(canaries.included)
    curve = curve_of(lambda delta: epsilon([_charge(recipe, site, end.round)], delta=delta))
    all_right = [Guesses(made=guesses.made, right=guesses.made) for guesses in end.tries]
    most = _shown(all_right, recipe, canaries=count)

    def broken(tries: Sequence[Guesses], shown: float) -> bool:
        by_curve = contradicted(curve, tries, canaries=count, confidence=CURVE)
        return shown > end.accounted or by_curve

    return Audit(
        recipe=recipe,
        site=site,
        canaries=count,
        noise_off=noise_off,
        points=points,
        most=most,
        could_catch=broken(all_right, most),
        caught=broken(end.tries, end.shown),
    )


def infer_membership(recipe: Recipe, folder: Path, *, observe: Observer) -> dict[str, Membership]:
    """Play the recipe in ``folder``, with privacy and without, and attack what is published.

    The score of a row is by how much the adapter lowers its loss per token. Members are the rows
    that a site trained on, others those that were held out at all sites: a row's content decides.

    Raises:
        FedloraError: a run cannot go on.
    """
    found = {}
    for name, played in {"with": recipe, "without": _without_privacy(recipe)}.items():
        run = simulation.start(plan(played.model_copy(update={"name": name})), runs=folder)
        simulation.simulate(run, observe=observe, apart=True)
        found[name] = _attack(run.recipe(), run.load().adapter)
    return found


def _rounds(recipe: Recipe, site: str, canaries: Canaries, *, noise_off: bool) -> Iterator[Point]:
    """Play a site's rounds one after another, and yield what is known after each."""
    played, count = Site.open(recipe, site), len(canaries.included)
    charge = training_charge(recipe, site, steps=recipe.federation.local_steps)
    if noise_off:
        charge = replace(charge, noise_multiplier=0.0)
    state = beginning_of(recipe, played.base.spec)
    for number in range(1, recipe.federation.rounds + 1):
        source = canaries.among(noise_stream(recipe, f"audit/{site}/{number}"))
        steps = CanaryDpSgd(
            canaries,
            charge,
            expected_examples=recipe.batch_size,
            source=source,
            rows=recipe.rows_of_example,
        )
        state = played.train_round_privately(
            state, number=number, mechanism=steps, source=source
        ).state
        so_far = _charge(recipe, site, number)
        numbers = numbers_of_guesses(count, sampling_rate=so_far.sampling_rate, steps=so_far.steps)
        tries = best_guesses(canaries.scores, canaries.included, numbers)
        yield Point(
            round=number,
            steps=so_far.steps,
            accounted=epsilon([so_far], delta=recipe.privacy.delta or 0),
            shown=_shown(tries, recipe, canaries=count),
            tries=tries,
        )


def _charge(recipe: Recipe, site: str, rounds: int) -> Charge:
    """Return what is charged for the training of the first rounds."""
    return training_charge(recipe, site, steps=rounds * recipe.federation.local_steps)


def _shown(tries: Sequence[Guesses], recipe: Recipe, *, canaries: int) -> float:
    delta = recipe.privacy.delta or 0
    return largest_lower_bound(tries, canaries=canaries, delta=delta, confidence=BOUND)


def _trained_numbers(recipe: Recipe, site: str) -> Iterable[int]:
    """Return how many numbers a round of each kind trains."""
    spec, facts = Site.open(recipe, site).base.spec, recipe.federation.facts
    return [spec.part(facts.trained(n), rank=recipe.rank_of(site)).size for n in (1, 2)]


def _without_privacy(recipe: Recipe) -> Recipe:
    """Return the same steps on the same sites' data, plain."""
    values = recipe.model_dump(mode="json", exclude_none=True)
    values["privacy"] = {"unit": "none"}
    for dataset in values["datasets"]:
        dataset.pop("records", None)
    return Recipe.model_validate(values)


def _attack(recipe: Recipe, adapter: AdapterState) -> Membership:
    sites = [Site.open(recipe, name) for name in recipe.site_names]
    trained = {row.ids for site in sites for row in site.train_rows}

    def gains(site: Site, *, members: bool) -> list[float]:
        rows = site.train_rows if members else site.held_out_rows
        rows = [row for row in rows if members or row.ids not in trained]
        losses = (site.losses(rows, state) for state in (None, adapter))
        return [base - after for base, after in zip(*losses, strict=True)]

    members, others = (
        np.array([gain for site in sites for gain in gains(site, members=which)])
        for which in (True, False)
    )
    if not len(others):
        raise RunError(
            "No row is held out, so there is nobody to tell members from: raise val_set_size."
        )
    return Membership.of(members, others)
