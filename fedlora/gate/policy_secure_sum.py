"""What a site asks of secure aggregation: the part of a policy that judges sums and who is in them.

An aggregator that could choose both would choose thresholds that it can meet, and cohorts whose
sums differ by one site.
"""

from collections.abc import Collection, Iterator
from typing import Annotated

from pydantic import Field

from fedlora.recipe import Recipe
from fedlora.sections import FEWEST, LARGEST_COMPLETE, Section, ThreatModel


class SecureSumBounds(Section):
    """The least that a secure sum must keep; of recipes without one, ``required`` alone is asked.

    They hold whatever recipes are allowed by their digests.
    """

    required: bool = False
    """No update leaves but masked."""
    threat_model: ThreatModel = "malicious-aggregator"
    """The weakest that is allowed. Cohorts of more than 100 have ``honest-but-curious`` alone, in
    which the aggregator is trusted to follow the protocol."""
    min_cohort: Annotated[int, Field(ge=FEWEST)] = FEWEST
    """Sites that must be in a sum, this one among them; each is pinned."""
    colluders: Annotated[int, Field(ge=0)] = 0
    """Sites of a cohort that must be allowed to tell the aggregator all that they know."""
    min_overlap: Annotated[float, Field(ge=0, le=1)] = 0
    """Of the sites in the last sum, of whatever run, or the next, the share that must be in both.
    The difference of two sums tells of those in one of them alone; 1 allows those of the first sum
    and no others, ever."""
    require_dp: bool = False
    """Sums must be noised too, by ``privacy.unit: example`` or ``client``."""

    def violations(self, recipe: Recipe) -> Iterator[str]:
        """Yield each bound that a recipe breaks: its key, what is allowed, and what is asked."""
        if not recipe.privacy.secure_aggregation:
            if self.required:
                yield _line("required", "a recipe with privacy.secure_aggregation", "one without")
            return
        if recipe.privacy.threat_model != self.threat_model == "malicious-aggregator":
            yield _line("threat_model", self.threat_model, f"{recipe.privacy.threat_model}")
        if recipe.cohort_size < self.min_cohort:
            cohort = f"a cohort of {recipe.cohort_size}"
            yield _line("min_cohort", f"at least {self.min_cohort}", cohort)
        if recipe.colluders < self.colluders:
            stood = f"a threshold against {recipe.colluders}"
            yield _line("colluders", f"at least {self.colluders}", stood)
        if self.min_overlap and recipe.cohort_size > LARGEST_COMPLETE:
            seen = f"a cohort of {recipe.cohort_size}, of which a site sees its neighbours alone"
            yield _line("min_overlap", f"at most {LARGEST_COMPLETE} sites", seen)
        if self.require_dp and recipe.privacy.unit == "none":
            yield _line("require_dp", "privacy.unit: example or client", "none")

    def roster_violations(self, members: Collection[str], last: Collection[str]) -> Iterator[str]:
        """Yield each bound that the sites of a sum break, as ``violations`` does.

        Args:
            members: the sites that are to be in the sum, this one among them.
            last: those of the last sum that the site was in; none before the first.
        """
        now, before = set(members), set(last)
        if len(now) < self.min_cohort:
            yield _line("min_cohort", f"at least {self.min_cohort}", f"a sum of {len(now)}")
        overlap = len(now & before) / len(now | before) if before else 1
        if overlap < self.min_overlap:
            shared = f"{len(now & before)} of {len(now | before)} sites, {overlap:.2g},"
            yield _line("min_overlap", f"at least {self.min_overlap:g}", shared)


def _line(key: str, allowed: str, asked: str) -> str:
    return f"secure_aggregation.{key}: {allowed} is allowed, but {asked} is asked"
