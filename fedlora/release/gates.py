"""Whether a release may take the place of the one before: by what was measured of both, alone.

Under ``privacy.unit: example`` what the sites measured is noised and charged, and single sites are
not shown, so that only their sum is judged; a margin below the noise decides by chance. Under
``privacy.unit: client`` sites measure nothing of their own. The public text is judged under each,
for it costs no privacy. Where a recipe bounds nothing, with ``null`` in each place, the gate is
off.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from fedlora.publish import Publish
from fedlora.release.manifest import Evaluation, Loss


def judge(
    evaluation: Evaluation, parent_evaluation: Evaluation | None, gate: Publish
) -> Sequence[str]:
    """Return why a release is held back; nothing if it holds.

    What the recipe bounds, but nobody measured, holds it back too; of single sites, those are
    judged that are shown. Losses of two runs mean the same as long as the sites hold out the same
    rows (equal data and seed), and the mean is over the sites that measured both.

    Args:
        evaluation: of the release.
        parent_evaluation: of the release that it would take the place of; without one, the base
            alone stands for it.
        gate: the recipe's bounds.
    """
    return [
        *_of_all(evaluation, parent_evaluation, gate),
        *_of_sites(evaluation, parent_evaluation, gate),
        *_of_public(evaluation, gate),
    ]


def _of_all(now: Evaluation, before: Evaluation | None, gate: Publish) -> Iterator[str]:
    if gate.margin is None:
        return
    loss, parent = _of_same_sites(now, before) if before else (now.held_out, None)
    if loss is None:
        yield (
            "publish.margin: nobody measured the held-out loss; evaluate (federation."
            "evaluate_every), or set publish.margin: null and bound publish.forgetting"
        )
        return
    bound = _Bound.of(loss, parent, margin=gate.margin)
    yield from bound.violations(loss, what="publish.margin: the held-out loss")


def _of_same_sites(now: Evaluation, before: Evaluation) -> tuple[Loss | None, Loss | None]:
    """Return both mean losses, where single sites are shown over those that measured both."""
    if not (now.sites and before.sites):
        return now.held_out, before.held_out
    common = sorted(now.sites.keys() & before.sites.keys())
    if not common:
        return now.held_out, None
    return _mean(now.sites, common), _mean(before.sites, common)


def _mean(losses: Mapping[str, Loss], sites: Sequence[str]) -> Loss:
    return Loss(
        base=fmean(losses[site].base for site in sites),
        adapter=fmean(losses[site].adapter for site in sites),
    )


def _of_sites(now: Evaluation, before: Evaluation | None, gate: Publish) -> Iterator[str]:
    if gate.site_margin is None:
        return
    parents = (before.sites if before else None) or {}
    for site, loss in sorted((now.sites or {}).items()):
        bound = _Bound.of(loss, parents.get(site), margin=gate.site_margin)
        yield from bound.violations(loss, what=f"publish.site_margin: the loss at {site}")


def _of_public(now: Evaluation, gate: Publish) -> Iterator[str]:
    if gate.forgetting is None:
        return
    if now.forgetting is None:
        yield (
            "publish.forgetting: no site measured the public text; name it at a site (public_text "
            "in site.yaml), or remove the bound"
        )
        return
    bound = _Bound.of(now.forgetting, None, margin=gate.forgetting.margin)
    yield from bound.violations(
        now.forgetting, what="publish.forgetting: the loss on the public text"
    )


@dataclass(frozen=True, kw_only=True)
class _Bound:
    """What a loss is held against, in nats."""

    loss: float
    whose: str
    margin: float

    @classmethod
    def of(cls, now: Loss, parent: Loss | None, *, margin: float) -> "_Bound":
        if parent is None or parent.adapter > now.base:  # or small steps up would add up
            return cls(loss=now.base, whose="the base's", margin=margin)
        return cls(loss=parent.adapter, whose="its parent's", margin=margin)

    def violations(self, now: Loss, *, what: str) -> Iterator[str]:
        if not now.adapter <= self.loss + self.margin:
            yield (
                f"{what} is {now.adapter:.4f} nats, which is {now.adapter - self.loss:.4f} "
                f"above {self.whose}, {self.loss:.4f}; {self.margin:g} is allowed"
            )
