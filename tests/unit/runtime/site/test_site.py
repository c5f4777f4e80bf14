"""What a process that lives for months keeps of the recipes that it has served."""

import gc
import weakref

from fedlora.runtime.site.site import Site, resident_base


def test_another_recipe_closes_the_sites_and_the_base_of_the_one_before(small_recipe, monkeypatch):
    """Before its own base is loaded: memory holds one, not two."""
    first, second = small_recipe(), small_recipe("seed=3")
    site = Site.open(first, "north")
    assert Site.open(first, "north") is site
    assert Site.open(first, "south").base is site.base
    kept = [weakref.ref(each) for each in (site, site.base)]
    del site
    alive_at_load = []
    load = resident_base.__globals__["BaseModel"].load

    def watched(recipe):
        gc.collect()
        alive_at_load.extend(each() is not None for each in kept)
        return load(recipe)

    monkeypatch.setattr("fedlora.runtime.site.site.BaseModel.load", watched)
    assert Site.open(second, "north").recipe == second
    assert alive_at_load == [False, False]
