"""Factors that a site trains and never sends."""

from fedlora.adapter import AdapterState, AdapterUpdate
from fedlora.recipe import Recipe
from fedlora.runtime.site.memory import SiteMemory

_NAME = "personal"


def with_personal(
    state: AdapterState, recipe: Recipe, memory: SiteMemory, *, before: int
) -> AdapterState:
    """Return the global adapter as a site uses it: with its own factors, as before that round.

    Where there are none, it is the global adapter itself.

    Raises:
        RunError: what the site remembers cannot be read.
    """
    personal = recipe.federation.facts.personal
    kept = memory.recall(_NAME, before=before) if personal else None
    if kept is None:
        return state
    part = state.spec.part(personal)
    increment = kept - state.part(part).values  # exact: nobody moves the global adapter's, zero
    return state.plus(AdapterUpdate(spec=part, values=increment, num_examples=1))


def keep_personal(state: AdapterState, recipe: Recipe, memory: SiteMemory, *, number: int) -> None:
    """Keep the site's own factors of what it trained, if the method has any.

    Raises:
        StorageError: they cannot be written.
    """
    if personal := recipe.federation.facts.personal:
        memory.keep(_NAME, state.part(state.spec.part(personal)).values, number=number)
