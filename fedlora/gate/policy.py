"""What a site lets itself be asked, and what it lets out: the word of its operator.

A policy is pure: it judges what it is given and remembers nothing. Nothing is allowed that it does
not name.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime, time
from typing import Annotated, Literal, Self, TypeVar

from pydantic import Field, model_validator

from fedlora.adapter import AdapterSpec, AdapterUpdate
from fedlora.errors import NotYetError, PolicyError
from fedlora.gate.metrics import COUNTED, kind_of
from fedlora.gate.policy_bounds import Bounds
from fedlora.gate.policy_secure_sum import SecureSumBounds
from fedlora.recipe import Recipe
from fedlora.sections import Count, Digest, Name, Section

__all__ = ["AdapterBounds", "ByteBounds", "MetricBound", "Policy"]

_Number = TypeVar("_Number", bound=int | float)

_HOURS = r"^([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d$"
_SHOWN, _LINES = 80, 20
"""Letters that are shown of a name that came from elsewhere, and reasons of a refusal."""


class AdapterBounds(Section):
    """How large an adapter that comes in may be, and how far it may change the base model."""

    parameters: Count = 250_000_000
    """Most values that it may have: the gate has them in memory, some bytes can stand for many."""
    spectral_norm: Annotated[float, Field(gt=0)] = 10
    """Largest spectral norm of ``scaling * B @ A``, of each module, and of what a head changed."""
    growth_per_round: Annotated[float, Field(gt=0)] = 5
    """By how much a module's may grow in a round."""


class ByteBounds(Section):
    """How much may leave, in bytes of encoded updates; metrics beside them are a few numbers."""

    per_round: Count = 256_000_000
    per_day: Count = 4_000_000_000


class MetricBound(Section):
    """A number that may leave by its name, and between which ends, both included."""

    name: Annotated[str, Field(pattern="^[a-z][a-z0-9_]{0,63}$")]
    type: Literal["int", "float"]
    min: float
    max: float

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min is {self.min:g}, which is above max, {self.max:g}")
        return self

    def violation(self, value: object) -> str:
        """Return why a value may not leave by this name; nothing if it may."""
        if type(value).__name__ != self.type or not isinstance(value, int | float):
            return f"a number of type {self.type} is allowed, but it is {type(value).__name__}"
        if not self.min <= value <= self.max:  # not a number is between no two
            return f"{self.min:g} to {self.max:g} is allowed, but it is outside"
        return ""


_METRICS = (
    MetricBound(name="train_loss", type="float", min=0, max=1e3),
    MetricBound(name="eval_loss_sum", type="float", min=-1e9, max=1e9),
    MetricBound(name="eval_tokens", type="int", min=0, max=1e9),
    MetricBound(name="public_loss_sum", type="float", min=0, max=1e9),
    MetricBound(name="public_tokens", type="int", min=1, max=1e9),
    *(MetricBound(name=name, type="int", min=0, max=1e9) for name in COUNTED),
)


class Policy(Section):
    """What a site allows; with neither ``recipes`` nor ``bounds`` that is nothing."""

    recipes: Annotated[tuple[Digest, ...], Field(strict=False)] = ()
    """Digests of the recipes that are allowed as they are, whatever ``bounds`` says."""
    bounds: Bounds | None = None
    """Within these, other recipes are allowed too."""
    approval: Literal["required", "none"] = "required"
    """Whether a person says yes to each run."""
    hours: Annotated[str, Field(pattern=_HOURS)] | None = None
    """When the site works, such as ``20:00-06:00`` by its own clock; by default at any time."""
    release_every: Annotated[float, Field(gt=0)] | None = None
    """Answers leave at multiples of so many seconds alone, so that when they do tells little."""
    secure_aggregation: SecureSumBounds = SecureSumBounds()
    adapter: AdapterBounds = AdapterBounds()
    update_norm: Annotated[float, Field(gt=0)] = 100
    """Largest Frobenius norm of an update that leaves, over all of its tensors."""
    bytes: ByteBounds = ByteBounds()
    metrics: Annotated[tuple[MetricBound, ...], Field(strict=False)] = _METRICS
    """The only numbers besides an update that may leave; fewer under privacy (``inspection``).

    Of the shares that an evaluation counts, those that are not named are withheld; what else is not
    named must not be sent at all."""

    @model_validator(mode="after")
    def _is_clear(self) -> Self:
        names = [metric.name for metric in self.metrics]
        if len(set(names)) < len(names):
            raise ValueError("metrics: a name is given twice: keep one of them")
        halves = {name.rpartition("_")[0] for name in set(COUNTED) & set(names)}
        for half in sorted(halves):
            if not {f"{half}_sum", f"{half}_count"} <= set(names):
                raise ValueError(f"metrics: {half}_sum and {half}_count mean something together")
        if self.hours and len(set(self.hours.split("-"))) == 1:
            raise ValueError("hours: both ends are the same: remove hours, or choose another end")
        return self

    def require_recipe(self, recipe: Recipe, spec: AdapterSpec, *, site: Name) -> None:
        """Do nothing if a recipe may be trained here.

        Args:
            recipe: as the aggregator sent it.
            spec: of its global adapter, as the recipe was locked to.
            site: this one.

        Raises:
            PolicyError: it may not; each reason is named.
        """
        broken = list(_contradictions(recipe, spec, site=site))
        broken += self.secure_aggregation.violations(recipe)
        if spec.size > self.adapter.parameters:
            most = f"at most {self.adapter.parameters:,} values are allowed"
            broken.append(f"adapter.parameters: {most}, but {spec.size:,} are asked")
        if recipe.digest not in self.recipes:
            if self.bounds:
                broken += self.bounds.violations(recipe, spec, site=site)
            else:
                known = "is none of policy.recipes" if self.recipes else "is not in the policy"
                broken.append(
                    f"recipe {recipe.digest} {known}, which has no bounds either: add its digest "
                    "to policy.recipes to allow it"
                )
        _require_none(broken, of="this recipe")

    def require_roster(self, members: Collection[str], last: Collection[str]) -> None:
        """Do nothing if a masked update may be summed with those of these sites.

        Args:
            members: the sites that are to be in the sum, this one among them; each is pinned.
            last: those of the last sum that the site was in; none before the first.

        Raises:
            PolicyError: it may not; each reason is named.
        """
        broken = self.secure_aggregation.roster_violations(members, last)
        _require_none(broken, of="this cohort")

    def require_now(self, now: datetime) -> None:
        """Do nothing if the site works at this time.

        Args:
            now: by the site's own clock; its time zone is not looked at.

        Raises:
            NotYetError: it does not.
        """
        if self.hours is None:
            return
        begin, end = map(time.fromisoformat, self.hours.split("-"))
        clock = now.time()
        within = begin <= clock < end if begin < end else clock >= begin or clock < end
        if not within:
            raise NotYetError(
                "The site's policy does not allow work now:"
                f"\n  hours: {self.hours} is allowed, but it is {clock:%H:%M}"
            )

    def require_room(self, asked: int, *, sent_in_round: int, sent_today: int) -> None:
        """Do nothing if so many more bytes may leave.

        Args:
            asked: bytes of the next answer.
            sent_in_round: what left before for the same run and round.
            sent_today: what left before on this day, for whatever run.

        Raises:
            PolicyError: they may not.
        """
        _require_none(
            [
                f"bytes.{key}: {most:,} is allowed, but {sent:,} were sent and {asked:,} more are "
                "to be"
                for key, most, sent in (
                    ("per_round", self.bytes.per_round, sent_in_round),
                    ("per_day", self.bytes.per_day, sent_today),
                )
                if sent + asked > most
            ],
            of="so many bytes",
        )

    def require_update(self, update: AdapterUpdate) -> None:
        """Do nothing if an update is of a size that may leave.

        Raises:
            PolicyError: it is larger, or not finite.
        """
        norm = update.norm()
        if not norm <= self.update_norm:
            allowed = f"at most {self.update_norm:g} is allowed"
            _require_none([f"update_norm: {allowed}, but it is {norm:.4g}"], of="this update")

    def without_withheld(self, metrics: Mapping[str, _Number]) -> dict[str, _Number]:
        """Return the metrics without the counts that are not named; an evaluation can do so too."""
        withheld = set(COUNTED) - {metric.name for metric in self.metrics}
        return {name: value for name, value in metrics.items() if kind_of(name) not in withheld}

    def require_metrics(self, metrics: Mapping[str, object]) -> None:
        """Do nothing if each metric is named, and of the type and in the range that is.

        Raises:
            PolicyError: one is not.
        """
        allowed = {metric.name: metric for metric in self.metrics}
        broken = []
        for name, value in metrics.items():
            if kind_of(name) not in allowed:
                broken.append(
                    f"metrics: {', '.join(allowed) or 'none'} is allowed, but {name!r:.{_SHOWN}} "
                    "is to leave"
                )
            elif reason := allowed[kind_of(name)].violation(value):
                broken.append(f"metrics.{name}: {reason}")
        _require_none(broken, of="these metrics")


def _contradictions(recipe: Recipe, spec: AdapterSpec, *, site: str) -> Iterable[str]:
    """Yield what no policy can allow: another adapter or site than the recipe's, noise of no use.

    Without this, bounds on a recipe would say nothing of what is trained.
    """
    if recipe.simulation.reproducible_noise:
        yield "simulation.reproducible_noise: false is expected, for true protects nobody"
    if site not in {dataset.site for dataset in recipe.datasets}:
        yield f"datasets: site {site} is expected, but the recipe gives it no dataset"
    if spec.rank != recipe.rank:
        yield f"adapter: rank {recipe.rank} is the recipe's, but {spec.rank} is asked"
        return
    if not math.isclose(spec.scaling, recipe.scaling):
        asked = f"{spec.scaling:g} is asked"
        yield f"adapter: scaling {recipe.scaling:g} is the recipe's, but {asked}"
    yield from _of_tensors(recipe, spec)


def _of_tensors(recipe: Recipe, spec: AdapterSpec) -> Iterable[str]:
    factors: dict[str, list[str]] = {}
    for tensor in spec.tensors:
        if tensor.with_rank(spec.rank) != tensor:
            yield f"adapter: {tensor.name!r:.{_SHOWN}} is not of rank {spec.rank}"
        if tensor.is_factor:
            factors.setdefault(tensor.module, []).append(tensor.factor)
        elif not recipe.labels:
            yield f"adapter: {tensor.name!r:.{_SHOWN}} is a head, but nothing is classified"
    for module, found in factors.items():
        if sorted(found) != ["A", "B"]:
            yield f"adapter: {module!r:.{_SHOWN}} has not one A and one B"


def _require_none(broken: Iterable[str], *, of: str) -> None:
    lines = [f"\n  {line}" for line in broken]
    if lines:
        more = f"\n  and {len(lines) - _LINES} more" if lines[_LINES:] else ""
        raise PolicyError(f"The site's policy does not allow {of}:{''.join(lines[:_LINES])}{more}")
