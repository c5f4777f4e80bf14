"""The loss of each step in the trackers that ``site.yaml`` names, on this host alone.

They get no variable that could name a server: what they keep is files in the trainer's folder.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from fedlora.recipe import Recipe
from fedlora.runtime.client.frames import Ask
from fedlora.runtime.site.memory import SiteMemory
from fedlora.runtime.site.steps import watching
from fedlora.runtime.trackers import Place, tracking


@contextmanager
def own_curves(question: Ask) -> Iterator[None]:
    """Keep the curve of the steps that a question makes the site take inside the block.

    Args:
        question: with the recipe as the site plays it: its trackers are the operator's.
    """
    recipe = Recipe.from_yaml(question.recipe)
    if question.purpose != "train" or not recipe.trackers:
        yield
        return
    folder = SiteMemory(question.site, question.run).folder
    folder.mkdir(parents=True, exist_ok=True)
    place = Place(run=question.run, recipe=recipe, folder=folder, environment={})
    with (
        tracking(recipe.trackers, place) as curves,
        watching(lambda step, loss: curves.log(step, {"train/loss": loss})),
    ):
        yield
