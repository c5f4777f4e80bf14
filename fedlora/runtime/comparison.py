"""What federating was worth: the same training by each site alone, and on all data pooled.

Every baseline sees as many examples as its counterpart in the federation: the pooled training takes
the steps of all clients together, a site alone its share of them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from statistics import fmean

from fedlora.adapter import AdapterState
from fedlora.runtime.events import BaselineProgress, Observer
from fedlora.runtime.run_folder import RunFolder
from fedlora.runtime.site import Site
from fedlora.training.evaluation import Evaluation

Losses = Mapping[str, Evaluation]
"""Evaluations by the site whose held-out rows were measured."""

@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Held-out evaluations of the base and of what each way of training reached."""

    base: Losses
    """Empty, like ``federated``, when nothing was evaluated."""
    federated: Losses
    alone: Mapping[str, Losses]
    """By the site that trained; empty when the baselines were not asked for."""
    pooled: Losses | None = None

    @property
    def alone_mean(self) -> float:
        """Mean over the sites' own models of the loss on all sites' rows, in nats per token."""
        return fmean(overall(losses).loss for losses in self.alone.values())

    @property
    def gap_closed(self) -> float | None:
        """Share of the gap between the sites alone and pooled that the federation closed.

        None without baselines, or when pooling is no better than training alone.
        """
        if self.pooled is None or not self.alone:
            return None
        federated, pooled = overall(self.federated).loss, overall(self.pooled).loss
        gap = self.alone_mean - pooled
        return (self.alone_mean - federated) / gap if gap > 0 else None


def overall(losses: Losses) -> Evaluation:
    """Return the evaluation over the held-out tokens of all sites."""
    return sum(losses.values(), start=Evaluation(loss_sum=0.0, tokens=0))


def losses_of(evaluation: Mapping[str, list[float]]) -> Losses:
    """Return evaluations from what a run's records keep of them: loss sum and tokens by site."""
    return {
        site: Evaluation(loss_sum=loss_sum, tokens=int(tokens))
        for site, (loss_sum, tokens) in sorted(evaluation.items())
    }


def read_comparison(run: RunFolder) -> Comparison:
    """Return what the run has measured so far: base and federated from its rounds."""
    rounds, baselines = run.records(), run.baselines()
    return Comparison(
        base=losses_of(rounds[0]["evaluation"]),
        federated=losses_of(rounds[-1]["evaluation"]),
        alone={name: losses_of(losses) for name, losses in baselines.alone.items()},
        pooled=losses_of(baselines.pooled) if baselines.pooled else None,
    )


def train_baselines(run: RunFolder, *, observe: Observer) -> None:
    """Train and measure the baselines that the run lacks, keeping each as soon as it is there."""
    recipe, done = run.recipe(), run.baselines()
    sites = [Site.open(recipe, name) for name in recipe.site_names]
    pooled_steps = recipe.total_steps * recipe.cohort_size
    for site in sites:
        if site.name not in done.alone:
            steps = max(1, pooled_steps // len(sites))
            losses = _train_and_measure(site, sites, steps=steps, observe=observe)
            done = replace(done, alone={**done.alone, site.name: losses})
            run.keep_baselines(done)
    if not done.pooled:
        rows = [row for site in sites for row in site.train_rows]
        pooled = replace(sites[0], name="all data pooled", train_rows=rows)
        losses = _train_and_measure(pooled, sites, steps=pooled_steps, observe=observe)
        run.keep_baselines(replace(done, pooled=losses))


def _train_and_measure(
    trainer: Site, sites: Iterable[Site], *, steps: int, observe: Observer
) -> dict[str, list[float]]:
    def on_step(step: int, loss: float) -> None:
        observe(BaselineProgress(name=trainer.name, step=step, steps=steps, loss=loss))

    initial = AdapterState.initial(trainer.base.spec, seed=trainer.recipe.seed)
    result = trainer.train(initial, first_step=0, steps=steps, total_steps=steps, on_step=on_step)
    measured = {site.name: site.evaluate(result.state) for site in sites}
    return {name: [e.loss_sum, float(e.tokens)] for name, e in measured.items()}
