"""What federating was worth: the same training by each site alone, and on all data pooled.

Every baseline sees as many examples as its counterpart in the federation: the pooled training takes
the steps of all clients together, a site alone its share of them.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from fedlora.adapter import AdapterState
from fedlora.runtime.events import BaselineProgress, Observer
from fedlora.runtime.run_folder import RunFolder
from fedlora.runtime.site.site import Site
from fedlora.training.evaluation import Evaluation, Share

Losses = Mapping[str, Evaluation]
"""Evaluations by the site whose held-out rows were measured."""

POOLED, BASE, FEDERATED = "all data pooled", "the base", "the federation"
"""Names of what is no site's own training; no site can have them, for their spaces."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Held-out evaluations of the base and of what each way of training reached."""

    base: Losses
    """Empty, like ``federated``, when nothing was evaluated."""
    federated: Losses
    alone: Mapping[str, Losses]
    """By the site that trained; empty when the baselines were not asked for."""
    pooled: Losses | None = None


def overall(losses: Losses) -> Evaluation:
    """Return the evaluation over the held-out tokens of all sites."""
    return sum(losses.values(), start=Evaluation(loss_sum=0.0, tokens=0))


def losses_of(
    evaluation: Mapping[str, list[float]],
    shares: Mapping[str, Mapping[str, list[int]]] | None = None,
) -> Losses:
    """Return evaluations from what a run's records keep of them.

    Args:
        evaluation: loss sum and tokens by site.
        shares: of the same rows, by site and name, how many of how many, where that is known.
    """
    counted = {
        site: {name: Share(total=total, count=count) for name, (total, count) in named.items()}
        for site, named in (shares or {}).items()
    }
    return {
        site: Evaluation(loss_sum=loss_sum, tokens=int(tokens), shares=counted.get(site, {}))
        for site, (loss_sum, tokens) in sorted(evaluation.items())
    }


def read_comparison(run: RunFolder) -> Comparison:
    """Return what the run has measured so far: base and federated from its rounds, if they were."""
    rounds = run.records()
    baselines = {name: losses_of(losses) for name, losses in run.baselines().items()}
    base, federated = (
        baselines.pop(name, {}) or losses_of(rounds[index]["evaluation"])
        for name, index in ((BASE, 0), (FEDERATED, -1))
    )
    measured = base.keys() & federated.keys()  # a site that failed once would bend the means
    return Comparison(
        base={site: base[site] for site in sorted(measured)},
        federated={site: federated[site] for site in sorted(measured)},
        pooled=baselines.pop(POOLED, None),
        alone=baselines,
    )


def train_baselines(run: RunFolder, *, observe: Observer) -> None:
    """Train and measure the baselines that the run lacks, keeping each as soon as it is there.

    Where no site may be evaluated by the aggregator, base and federation are measured here, too.
    """
    recipe, kept = run.recipe(), run.baselines()
    sites = [Site.open(recipe, name) for name in recipe.site_names]
    if not recipe.federation.evaluate_every and FEDERATED not in kept:
        kept |= {BASE: _measured(sites, None), FEDERATED: _measured(sites, run.load().adapter)}
        run.keep_baselines(kept)
    rows = [row for site in sites for row in site.train_rows]
    pooled_steps = recipe.total_steps * recipe.cohort_size
    trainings = [(site, max(1, pooled_steps // len(sites))) for site in sites]
    weights = [weight for site in sites for weight in site.row_weights]
    pooled = replace(sites[0], name=POOLED, train_rows=rows, row_weights=weights)
    trainings.append((pooled, pooled_steps))
    done, total = 0, sum(steps for _, steps in trainings)
    for trainer, steps in trainings:
        if trainer.name not in kept:
            tell = partial(_tell, observe, trainer.name, before=done, total=total)
            kept[trainer.name] = _train_and_measure(
                trainer, sites, beginning=run.beginning(), steps=steps, on_step=tell
            )
            run.keep_baselines(kept)
        done += steps


def _tell(observe: Observer, name: str, step: int, _: float, *, before: int, total: int) -> None:
    observe(BaselineProgress(name=name, done=before + step, total=total))


def _train_and_measure(
    trainer: Site,
    sites: Iterable[Site],
    *,
    beginning: AdapterState,
    steps: int,
    on_step: Callable[[int, float], None],
) -> dict[str, list[float]]:
    spec, recipe = trainer.base.spec, trainer.recipe
    result = trainer.train(
        beginning,
        part=spec.part(rank=recipe.rank_of(trainer.name)),
        first_step=0,
        steps=steps,
        total_steps=steps,
        on_step=on_step,
    )
    return _measured(sites, result.state)


def _measured(sites: Iterable[Site], state: AdapterState | None) -> dict[str, list[float]]:
    measured = {site.name: site.evaluate(state) for site in sites}
    return {name: [e.loss_sum, float(e.tokens)] for name, e in measured.items()}
