"""What comes in: an adapter that was crafted can amplify what a base memorised, or project data.

So the first must be what the recipe's public seed gives, or the adapter that the recipe was locked
to begin with, and each one after it stays within bounds that the operator sets. What is bounded is
how far the base is changed, not what the change means.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from fedlora import products
from fedlora.adapter import AdapterState, Factor
from fedlora.errors import PolicyError
from fedlora.gate.policy import AdapterBounds
from fedlora.recipe import Recipe
from fedlora.tensor_file import raw
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

    A head counts as a module. Its norm is that of what it has become since the recipe's seed gave
    it, or, of a run that begins with a trained adapter, its own.

    Guarantees:
        - All values are finite, and no module's spectral norm is above ``bounds``.
        - Before the first round it is what the recipe's seed gives, or what the recipe was locked
          to begin with, value for value.
        - A factor that the recipe's method never changes is that of the beginning, in all rounds.
        - Since the last one seen, or the beginning, no module grew more than ``bounds`` allows in
          so many rounds. Of a run that begins with a trained adapter, which this site has not seen,
          nobody here knows by how much.

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
    norms = products.spectral_norms(state) | _head_norms(state, recipe)
    before = seen or Seen(rounds=0, norms={})
    begun = recipe.lock is not None and recipe.lock.beginning is not None
    rounds = 0 if begun and seen is None else number - before.rounds
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


def _head_norms(state: AdapterState, recipe: Recipe) -> dict[str, float]:
    """Return each head's spectral norm, without what the recipe's seed gave it."""
    if not state.spec.heads:
        return {}
    heads = {name: values.double() for name, values in state.heads()}
    if not (recipe.lock and recipe.lock.beginning):
        drawn = AdapterState.initial(state.spec, seed=recipe.seed).heads()
        heads = {name: heads[name] - values for name, values in drawn}
    return {name: float(torch.linalg.norm(values, ord=2)) for name, values in heads.items()}


def _require_origin(state: AdapterState, *, number: int, recipe: Recipe) -> None:
    """Do nothing if what the run has not changed yet, or never does, is what the seed gives."""
    unchanged = constant_factors(recipe) if number else frozenset(KINDS)
    if not unchanged:
        return
    if recipe.lock and recipe.lock.beginning:
        require_beginning(state, recipe, factors=unchanged)
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


def require_beginning(
    state: AdapterState,
    recipe: Recipe,
    *,
    factors: frozenset[Factor] = frozenset(KINDS),
) -> None:
    """Do nothing if factors are those of the adapter that the recipe was locked to begin with.

    Raises:
        PolicyError: they are others.
    """
    beginning = recipe.lock.beginning if recipe.lock else None
    if beginning is None:
        return
    locked: Mapping[Factor, str] = {
        "A": beginning.a_digest,
        "B": beginning.b_digest,
        "head": beginning.head_digest,
    }
    for factor in sorted(factors):
        if factor_digest(state, factor) != locked[factor]:
            raise PolicyError(
                f"The factors {factor} are not those of the adapter that the recipe was locked to "
                f"begin with ({recipe.init_from!r:.80})."
            )


def factor_digest(state: AdapterState, factor: Factor) -> str:
    """Return the SHA-256, in hexadecimal, over the values of all tensors of a factor."""
    total = hashlib.sha256()
    for tensor, values in state.factors():
        if tensor.factor == factor:
            total.update(raw(values.contiguous()))
    return total.hexdigest()


def constant_factors(recipe: Recipe) -> frozenset[Factor]:
    """Return the kinds of tensors that stay as they began: what no round sends.

    A method that turns the factors may change both.
    """
    facts = recipe.federation.facts
    sent = {kind for number in range(1, len(facts.trains) + 1) for kind in facts.sent(number)}
    return frozenset(kind for kind in KINDS if kind not in sent and not facts.turns)
