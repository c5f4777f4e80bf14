"""What a run promises of privacy, in sentences: the same in tables and reports."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedlora.privacy.charge import Adjacency, Mechanism
from fedlora.recipe import Recipe
from fedlora.runtime import secure_statement
from fedlora.runtime.aggregator.cohort import all_folded
from fedlora.runtime.charges import (
    LARGEST_LOSS,
    epsilon_against,
    readers_epsilon,
    round_charge,
    secure_noise,
    training_charge,
)
from fedlora.runtime.fixed_point import fixed_point_of

NEIGHBOURS: Mapping[Adjacency, str] = {
    "add-remove": "one client more or less",
    "replace-one": "one client in another's place",
    "zero-out": "one client's updates, or zeros in their place",
}
"""What may differ between sets of clients that a private run hides the difference of."""
ACCOUNTANTS: Mapping[Mechanism, str] = {
    "gaussian": "PRV (Gopi et al. 2021)",
    "skellam": "RDP (Agarwal et al. 2021)",
}
"""What ε is computed by."""

_NO_NOISE = "No differential privacy was applied; sums of updates can reveal training data."
_SUMS_UNBOUNDED = (
    "No site sent its rows, but nothing bounds what a sum says about them. Publish the adapter "
    "only where the training data themselves could be shown."
)
_NO_PRIVACY = "No differential privacy was applied; updates can reveal training data."
_UNBOUNDED = (
    "Each site sent its adapter updates and, with them, its training loss, its number of examples, "
    "and the loss and number of tokens of its held-out rows. It did not send the rows, but nothing "
    "bounds what an update says about them. Publish the adapter only where the training data "
    "themselves could be shown."
)
_VOID = (
    "This run protects nobody: simulation.reproducible_noise drew its noise from the recipe's seed."
)
_CLIENTS_NOT_HIDDEN = (
    "Not hidden: whatever is the same with and without any one client, and whether some client's "
    "update was missing, if that is said above. Of clients that share data what they tell adds up. "
    "So do later runs with the same clients, which the aggregator's ledger counts. Who took "
    "part and what became of each update is not shown here: it is in the aggregator's own "
    "rounds.jsonl and checkpoints, which the promise does not cover."
)
_RECORDS_NOT_HIDDEN = (
    "Not hidden: who takes part, the declared numbers of records, and whatever is the same with "
    "and without any one record. What several records of one person tell adds up: for k of them, "
    "or copies at k sites, ε is up to k times as large, and δ larger still. So do later runs on "
    "the same data, which a site's ledger counts if it is kept (FEDLORA_SITES)."
)
_BEGUN = (
    "Training began with an adapter that was given (init_from). It counts as public: what it tells "
    "of the data that it was trained on is not part of this promise, and adds to it where they are "
    "the same data."
)
_FLOATS = (
    "The noise is made of floating-point numbers. Each value is the sum of four draws, which makes "
    "attacks on their low bits hard: a mitigation, not a proof."
)


def summary(recipe: Recipe) -> str:
    """Return the promise in a few words."""
    privacy = recipe.privacy
    if privacy.unit == "none":
        told = "sums" if privacy.secure_aggregation else "updates"
        return f"none: nothing bounds what {told} say about single records"
    void = " (void: reproducible noise)" if recipe.simulation.reproducible_noise else ""
    return f"{privacy.unit}-level, ε {privacy.epsilon:g} at δ {privacy.delta:g}{void}"


def statement(recipe: Recipe, records: Sequence[Mapping[str, Any]]) -> Sequence[str]:
    """Return what is promised, under which assumptions, and what is not: a headline, and the rest.

    Args:
        recipe: of the run.
        records: of its rounds; in those all who were drawn must have answered, where a promise
            rests on the draw.

    Raises:
        BudgetError: no noise keeps the promise.
    """
    privacy = recipe.privacy
    if privacy.unit == "none":
        return _without_noise(recipe, records)
    headline = (
        f"{privacy.unit.capitalize()}-level differential privacy: ε is {privacy.epsilon:g} at δ "
        f"{privacy.delta:g} over the whole run."
    )
    begun = [_BEGUN] if recipe.init_from else []
    void = [_VOID] if recipe.simulation.reproducible_noise else []
    if privacy.unit == "example":
        summed = _summed(recipe, records)
        promise = _of_examples(recipe)
        return [*void, headline, promise, *summed, *begun, _RECORDS_NOT_HIDDEN, _FLOATS]
    if privacy.secure_aggregation:
        shared, exact = _of_secure_sums(recipe), _exact(recipe)
        return [*void, headline, *shared, *begun, _CLIENTS_NOT_HIDDEN, exact]
    promises = _of_clients(recipe), _of_readers(recipe, records)
    return [*void, headline, *promises, *begun, _CLIENTS_NOT_HIDDEN, _FLOATS]


def _without_noise(recipe: Recipe, records: Sequence[Mapping[str, Any]]) -> Sequence[str]:
    if not recipe.privacy.secure_aggregation:
        return _NO_PRIVACY, _UNBOUNDED
    return [_NO_NOISE, *_summed(recipe, records), _SUMS_UNBOUNDED]


def _summed(recipe: Recipe, records: Sequence[Mapping[str, Any]]) -> Sequence[str]:
    """Return what the aggregator saw in place of updates, if it was their sums alone."""
    return secure_statement.sentences(recipe, records) if recipe.privacy.secure_aggregation else ()


def _of_examples(recipe: Recipe) -> str:
    noises = [training_charge(recipe, site, steps=1).noise_multiplier for site in recipe.site_names]
    ends = dict.fromkeys(f"{noise:.3g}" for noise in (min(noises), max(noises)))
    promise = (
        "It holds at each site, against all who see what leaves it, the aggregator among them; the "
        "site's own trainer and gate are trusted. Neighbours are data sets with one training "
        "record more or less. Each step draws every record on its own (Poisson sampling), clips "
        f"its gradient to a norm of {recipe.max_grad_norm:g} and adds normal noise of "
        f"{' to '.join(ends)} times that. Accountant: {ACCOUNTANTS['gaussian']}."
    )
    if recipe.privacy.clip_quantile is not None:
        promise += (
            " The norm is that of the first step: it follows a quantile of the gradients' norms, "
            "by a noised count that is part of ε, and the noise follows it, a little larger for "
            "the count's sake."
        )
    if not recipe.privacy.evaluation_noise:
        return promise
    return (
        f"{promise} Held-out losses are cut to {LARGEST_LOSS:g} a record and summed with noise of "
        f"{recipe.privacy.evaluation_noise:g} times that, which is part of ε. A loss that is "
        "shown is that sum over the declared number of held-out records: a rough number."
    )


def _of_clients(recipe: Recipe) -> str:
    charge = round_charge(recipe)
    return (
        "It holds for all data of one client together, against all who see the global adapters, "
        "even if they know who took part in which round, as the aggregator does. The aggregator "
        "itself is trusted: it sees each update, clips it to a norm of "
        f"{recipe.privacy.clip_norm:g} and adds normal noise of {charge.noise_multiplier:.3g} "
        f"times {charge.sensitivity:g} to their sum. Neighbours are sets of clients with "
        f"{NEIGHBOURS[charge.adjacency]}. Accountant: {ACCOUNTANTS[charge.mechanism]}."
    )


def against(recipe: Recipe) -> str:
    """Return what ε is against those who know more or fewer shares of a secure sum's noise.

    Raises:
        BudgetError: no noise is enough.
    """
    colluders = recipe.colluders
    with_help = f" and up to {colluders} clients that tell it all they know" if colluders else ""
    return (
        f"ε {recipe.privacy.epsilon:g} is against the aggregator{with_help}. Against it and "
        "readers, without the help of a client, it is "
        f"{epsilon_against(recipe, knowing=0):.3g}, and against one client, which knows its own "
        f"share, {epsilon_against(recipe, knowing=1):.3g}."
    )


def _of_secure_sums(recipe: Recipe) -> Sequence[str]:
    charge, noise = round_charge(recipe), secure_noise(recipe)
    lies = {
        "malicious-aggregator": "even if it does not keep to the protocol",
        "honest-but-curious": "as long as it keeps to the protocol",
    }
    promise = (
        "It holds for all data of one client together, and no aggregator is trusted with it: each "
        f"site clips its update to a norm of {recipe.privacy.clip_norm:g}, adds a share of Skellam "
        "noise and masks it; the aggregator sees the sum. The site's own trainer and gate are "
        f"trusted. Any {noise.shares if noise else 0} shares that an adversary does not know make "
        f"noise of {charge.noise_multiplier:.3g} times the norm. Neighbours are "
        f"{NEIGHBOURS[charge.adjacency]}; who takes part is not hidden. Accountant: "
        f"{ACCOUNTANTS[charge.mechanism]}."
    )
    held = lies[recipe.privacy.threat_model or "honest-but-curious"]
    return promise, f"{against(recipe)} It holds {held}."


def _exact(recipe: Recipe) -> str:
    fixed = fixed_point_of(recipe)
    return (
        f"The noise is made of whole numbers, {fixed.steps:,} of which make the norm, by an exact "
        "sampler. That a round's sum wraps around, which would spoil the adapter and tell nothing "
        f"more, has a probability of at most {fixed.wrap_probability:.2g}."
    )


def _of_readers(recipe: Recipe, records: Sequence[Mapping[str, Any]]) -> str:
    """Return what holds against those who do not know who took part."""
    if recipe.participation_rate == 1:
        return "All sites take part in each round, so there is no draw that could hide a client."
    if recipe.federation.cohort_sampling == "fixed-size":
        return (
            "ε is no smaller against those who do not know who took part: cohorts are of fixed "
            "size and follow from the recipe's seed."
        )
    drawn = (
        "Each round draws every site on its own (Poisson sampling), with a probability of "
        f"{recipe.participation_rate:.3g}, by draws that nobody else can know"
    )
    if not all_folded(records):
        return (
            f"{drawn}. But not every update of those drawn was folded, so that chance alone did "
            "not decide who took part: ε is no smaller against those who do not know who did."
        )
    return (
        "Against those who see the global adapters alone and do not know who took part, ε is "
        f"{readers_epsilon(recipe):.2g}. {drawn}, and every update of those drawn was folded, "
        "which is all that is told of them. It holds as long as nobody tells who took part."
    )
