"""SCAFFOLD's correction of a site's drift, from what the site knows by itself.

Karimireddy et al. 2020, arXiv:1910.06378, algorithm 1 with option II. There each site keeps a
control variate c_i, the mean direction of its own last steps, and the server sends their mean c
beside the model. But where the server only adds the mean of the updates, c is what the global
adapter moved by, over the sum of the steps' learning rates: a site can tell it from two adapters
that it received, and no second vector travels. With every site in every round and equal weights it
is the paper's c, but for what rounding the updates loses; otherwise it is what those made of it who
took part.

Both are made of received adapters and of the site's own trained ones, as they were to be sent. With
``privacy.unit: example`` these are private already: the correction costs nothing (post-processing).
"""

from dataclasses import dataclass
from functools import cached_property

import torch

from fedlora.adapter import AdapterSpec, AdapterState
from fedlora.recipe import Recipe
from fedlora.runtime.site.memory import SiteMemory
from fedlora.training.schedule import learning_rate


@dataclass(frozen=True, kw_only=True, eq=False)
class SiteDrift:
    """What a site corrects in round ``number``, and what it remembers of it."""

    recipe: Recipe
    memory: SiteMemory
    number: int
    received: AdapterState

    @cached_property
    def correction(self) -> AdapterState | None:
        """``c - c_i``: what is taken from each step, times its learning rate.

        There is none where the recipe does not ask for it, and at a site that has not trained these
        factors before.

        Raises:
            RunError: what the site remembers cannot be read.
        """
        if not self.recipe.federation.drift_correction:
            return None
        kept = self.memory.recall(self._name, before=self.number)
        if kept is None:
            return None
        then, own = kept
        last = self.memory.last(self._name, before=self.number)
        trained = self.recipe.federation.facts.trained
        common = AdapterState(spec=self._part, values=then - self._began.values)
        for tensor, moved in common.factors():
            between = [n for n in range(last, self.number) if tensor.factor in trained(n)]
            moved.div_(sum(map(self._rates, between)))
        return AdapterState(spec=self._part, values=common.values - own)

    def keep(self, trained: AdapterState) -> None:
        """Remember the mean direction of the site's own steps, and what the round began from.

        Args:
            trained: what they made of it.

        Raises:
            StorageError: it cannot be written.
        """
        if not self.recipe.federation.drift_correction:
            return
        began = self._began.values
        own = (began - trained.part(self._part).values) / self._rates(self.number)
        if self.correction is not None:
            own -= self.correction.values
        self.memory.keep(self._name, torch.stack([began, own]), number=self.number)

    @cached_property
    def _part(self) -> AdapterSpec:
        factors = self.recipe.federation.facts.trained(self.number)
        return self.received.spec.part(factors, rank=self.recipe.rank_of(self.memory.site))

    @cached_property
    def _began(self) -> AdapterState:
        return self.received.part(self._part)

    @property
    def _name(self) -> str:
        return f"direction-{self.recipe.federation.facts.turn(self.number)}"

    def _rates(self, number: int) -> float:
        """Return the sum of the learning rates of a round."""
        steps, total = self.recipe.federation.local_steps, self.recipe.total_steps
        round_steps = range((number - 1) * steps, number * steps)
        return sum(learning_rate(self.recipe, step, total_steps=total) for step in round_steps)
