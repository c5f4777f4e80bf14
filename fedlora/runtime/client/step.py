"""One local step of a recipe, on this site's data, base and device; nothing of it is kept."""

import time
from pathlib import Path

from fedlora.recipe import read_recipe
from fedlora.runtime.client.configuration import SiteConfiguration, at_site
from fedlora.runtime.reports.format import counted, duration, size
from fedlora.runtime.site.site import Site
from fedlora.training.base_model import describe


def one_step(path: Path, site: SiteConfiguration) -> str:
    """Take one step, without noise, and return what it took.

    It runs with the rights of who calls it, not isolated: try recipes that you have read.

    Raises:
        PolicyError: the policy does not allow the recipe.
        RecipeError: it is no recipe.
        DataError: the data cannot be used.
        BaseModelError: the base model cannot be used.
    """
    asked = read_recipe(path)
    recipe = at_site(asked, site)
    facts = describe(recipe)
    site.policy.require_recipe(asked, facts.spec, site=site.site)
    began = time.perf_counter()
    opened = Site.open(recipe, site.site)
    loaded = time.perf_counter()
    part = facts.spec.part(recipe.federation.facts.trained(1), rank=recipe.rank_of(site.site))
    result = opened.train(
        opened.base.adapter(), part=part, first_step=0, steps=1, total_steps=recipe.total_steps
    )
    return (
        f"{counted(len(opened.train_rows), 'row')} to train on; loaded in "
        f"{duration(loaded - began)}, a step in {duration(time.perf_counter() - loaded)}, about "
        f"{size(facts.memory)} of memory on {facts.device}; loss {result.losses[0]:.3f}"
    )
