"""What comes in: an adapter that was crafted can amplify what a base memorised, or project data.

So the first must be what the recipe's public seed gives, and each one after it stays within bounds
that the operator sets. What is bounded is how far the base is changed, not what the change means.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from fedlora import products
from fedlora.adapter import AdapterState, Factor
from fedlora.errors import PolicyError
from fedlora.gate.policy import AdapterBounds
from fedlora.recipe import Recipe
from fedlora.tensors import KINDS


@dataclass(frozen=True, kw_only=True)
class Seen:
    """The last adapter of a run that this site saw."""

    rounds: int
    """Complete rounds behind it."""
    norms: Mapping[str, float]
    """Spectral norm of ``scaling * B @ A`` by module, and of each head's change since the start."""


def require_adapter(
    state: AdapterState,
    *,
    number: int,
    recipe: Recipe,
    bounds: AdapterBounds,
    seen: Seen | None = None,
) -> Mapping[str, float]:
    """Return an adapter's spectral norm by module, if it may be trained on here.

    A head counts as a module. Its norm is that of what it has become since the beginning.

    Guarantees:
        - All values are finite, and no module's spectral norm is above ``bounds``.
        - Before the first round it is what the recipe's seed gives, value for value.
        - A factor that the recipe's method never changes is that of the beginning, in all rounds.
        - Since the last one seen, or the beginning, no module grew more than ``bounds`` allows in
          so many rounds.

    Args:
        state: as received.
        number: complete rounds behind it; to train round n, n - 1 are.
        recipe: of the run.
        bounds: the operator's.
        seen: the last one that this site saw of the run; none if it saw none.

    Raises:
        PolicyError: it may not; module, value and bound are named.
    """
    if not state.is_finite():
        broken = [tensor.name for tensor, values in state.factors() if not values.isfinite().all()]
        raise PolicyError(f"The received adapter has values of {broken[0]} that are not finite.")
    _require_origin(state, number=number, recipe=recipe)
    norms = products.spectral_norms(state) | _head_norms(state, seed=recipe.seed)
    before = seen or Seen(rounds=0, norms={})
    rounds = number - before.rounds
    for module, norm in norms.items():
        if norm > bounds.spectral_norm:
            raise PolicyError(
                f"The received adapter changes {module} by a spectral norm of {norm:.4g}, but at "
                f"most {bounds.spectral_norm:g} is allowed (policy.adapter.spectral_norm)."
            )
        grown, most = norm - before.norms.get(module, 0.0), bounds.growth_per_round * rounds
        if rounds > 0 and grown > most:
            raise PolicyError(
                f"The received adapter's spectral norm of {module} grew by {grown:.4g} in {rounds} "
                f"round(s), but at most {most:g} is allowed (policy.adapter.growth_per_round)."
            )
    return norms


def _head_norms(state: AdapterState, *, seed: int) -> dict[str, float]:
    """Return the spectral norm of what each head has become since the beginning."""
    if not state.spec.heads:
        return {}
    beginning = dict(AdapterState.initial(state.spec, seed=seed).heads())
    changes = {name: values.double() - beginning[name] for name, values in state.heads()}
    return {name: float(torch.linalg.norm(change, ord=2)) for name, change in changes.items()}


def _require_origin(state: AdapterState, *, number: int, recipe: Recipe) -> None:
    """Do nothing if what the run has not changed yet, or never does, is what the seed gives."""
    unchanged = constant_factors(recipe) if number else frozenset(KINDS)
    if not unchanged:
        return
    beginning = dict(AdapterState.initial(state.spec, seed=recipe.seed).factors())
    for tensor, values in state.factors():
        if tensor.factor in unchanged and not torch.equal(values, beginning[tensor]):
            why = (
                f"method {recipe.federation.method} never changes it"
                if number
                else "a run begins so"
            )
            raise PolicyError(
                f"The received {tensor.name} is not what the recipe's seed {recipe.seed} gives, "
                f"but {why}."
            )


def constant_factors(recipe: Recipe) -> frozenset[Factor]:
    """Return the kinds of tensors that stay as they began: what no round sends.

    A method that turns the factors may change both.
    """
    facts = recipe.federation.facts
    sent = {kind for number in range(1, len(facts.trains) + 1) for kind in facts.sent(number)}
    return frozenset(kind for kind in KINDS if kind not in sent and not facts.turns)
