"""What rounding loses of an update is added to the next, where values still mean the same.

Seide et al. 2014, doi:10.21437/Interspeech.2014-274, section 3.
"""

from fedlora.adapter import AdapterSpec, AdapterUpdate
from fedlora.recipe import Recipe
from fedlora.runtime.site.memory import SiteMemory
from fedlora.wire.encodings import rounded


def add_lost(
    update: AdapterUpdate, recipe: Recipe, memory: SiteMemory, *, number: int
) -> AdapterUpdate:
    """Return the update with what rounding lost when these factors were last sent, in its place.

    Raises:
        RunError: what the site remembers cannot be read.
    """
    if _applies(recipe):
        lost = memory.recall(_name(update.spec), before=number)
        if lost is not None:
            update.values.add_(lost)
    return update


def keep_lost(update: AdapterUpdate, recipe: Recipe, memory: SiteMemory, *, number: int) -> None:
    """Keep what rounding loses of the update that is sent.

    Raises:
        StorageError: it cannot be written.
    """
    if _applies(recipe):
        lost = update.values - rounded(update.values, update.spec, codec=recipe.wire.codec)
        memory.keep(_name(update.spec), lost, number=number)


def _applies(recipe: Recipe) -> bool:
    """Whether losses are kept; a client's update must not depend on when it last took part."""
    hidden = recipe.privacy.unit == "client"
    return recipe.wire.codec == "nf4" and recipe.keeps_gauge and not hidden


def _name(spec: AdapterSpec) -> str:
    return "lost-" + "".join(sorted({tensor.factor for tensor in spec.tensors}))
