"""A request in words that an operator can decide by: what is asked, and what would leave."""

from collections.abc import Iterator, Sequence

from fedlora.adapter import AdapterSpec
from fedlora.gate.metrics import SHARES
from fedlora.gate.policy import Policy
from fedlora.recipe import Recipe
from fedlora.runtime.client.approvals import Request
from fedlora.runtime.client.configuration import SiteConfiguration
from fedlora.runtime.reports.format import counted, duration, size
from fedlora.sections import STANDARD_LIBRARY
from fedlora.wire.encodings import encoded_size

_MODULES_SHOWN = 12
_MASKED_BYTES = 4
"""Of each masked value, and of the weight beside them."""


def summary(
    request: Request, site: SiteConfiguration, *, aggregator: str
) -> Sequence[tuple[str, str]]:
    """Return the lines of a request, each with what it is about.

    Args:
        request: what was asked.
        site: who is asked.
        aggregator: where the asking one answers, as the site enrolled with it.

    Guarantees:
        Nothing that the aggregator wrote can move the terminal's cursor or turn its text around.
    """
    recipe = request.recipe
    lines = [
        ("asked by", f"the aggregator at {aggregator}, first at {request.asked}"),
        ("run", request.run),
        ("recipe", f"{recipe.name}, SHA-256 {recipe.digest}"),
        *_training(recipe, request.spec, site),
        ("your data", "; ".join(_data(site))),
        ("with", ", ".join(name for name in recipe.site_names if name != site.site) or "no others"),
        ("leaves", _update(recipe, request.spec, site.site)),
        *_summed(recipe),
        ("", _metrics(recipe, site)),
        *_copied(recipe),
        ("privacy", _privacy(recipe)),
        ("takes", _time(recipe)),
    ]
    return [(label, printable(text)) for label, text in lines]


def printable(text: str) -> str:
    """Return a text with whatever is not a visible letter or a space replaced."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)


def _training(
    recipe: Recipe, spec: AdapterSpec, site: SiteConfiguration
) -> Iterator[tuple[str, str]]:
    where = f", here {site.base_model}" if site.base_model else ""
    yield "base model", f"{recipe.base_model}, SHA-256 {spec.base_digest}{where}"
    modules = spec.modules
    kinds = sorted({module.rpartition(".")[2] for module in modules})
    more = ", …" if kinds[_MODULES_SHOWN:] else ""
    kind = f"{recipe.adapter} of rank {recipe.rank_of(site.site)}"
    places = f"{counted(len(modules), 'module')} ({', '.join(kinds[:_MODULES_SHOWN])}{more})"
    method = f"method {recipe.federation.method}, learning rate {recipe.learning_rate:g}"
    yield "trains", f"{kind} on {places}, {method}"
    if recipe.lock and (beginning := recipe.lock.beginning):
        known = f"release {beginning.release}" if beginning.release else "an adapter of no release"
        yield "", f"from {known} on, which the aggregator chose"
    rounds = counted(recipe.federation.rounds, "round")
    steps = counted(recipe.federation.local_steps, "step")
    learns = "prompts and answers" if recipe.train_on_inputs else "answers alone"
    if recipe.objective == "dpo":
        learns = "which of two answers is preferred"
    if recipe.labels:
        learns = f"which of {counted(len(recipe.labels), 'label')} a text has"
    yield "", f"{rounds} of {steps} of {counted(recipe.batch_size, 'example')}"
    yield "", f"it learns {learns}, of rows cut to {recipe.sequence_len:,} tokens"


def _data(site: SiteConfiguration) -> Iterator[str]:
    for dataset in site.data:
        packages = f": {', '.join(dataset.packages)}" if dataset.packages else ""
        kind = "" if dataset.path == STANDARD_LIBRARY else f" ({dataset.type})"
        yield f"{dataset.path}{packages}{kind}"


def _update(recipe: Recipe, spec: AdapterSpec, site: str) -> str:
    """Return how many values leave in a round, in how many bytes, and how often."""
    facts, rounds = recipe.federation.facts, recipe.federation.rounds
    cycle = range(1, len(facts.trains) + 1)
    parts = [spec.part(facts.sent(number), rank=recipe.rank_of(site)) for number in cycle]
    largest = max(parts, key=lambda part: part.size)
    up_to = "up to " if len(parts) > 1 or recipe.wire.compress else ""
    masked = recipe.privacy.secure_aggregation
    kind = "masked" if masked else recipe.wire.codec
    most = (
        _MASKED_BYTES * (largest.size + 1) if masked else encoded_size(largest, recipe.wire.codec)
    )
    return (
        f"an update of {up_to}{largest.size:,} values ({kind}, {up_to}{size(most)}) "
        f"in {_rounds(recipe)}, at most {size(most * rounds)} in all"
    )


def _summed(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Yield what the aggregator gets to see in place of updates, and on whom that rests."""
    if not recipe.privacy.secure_aggregation:
        return
    lies = recipe.privacy.threat_model == "malicious-aggregator"
    model = "even if it lies" if lies else "if it follows the protocol"
    few = f"at most {recipe.colluders}" if recipe.colluders else "none"
    yield (
        "summed",
        (
            f"the aggregator sees sums of {recipe.threshold} or more of {recipe.cohort_size} sites "
            f"alone, {model}, while {few} of them tell it what they know; who takes part it knows"
        ),
    )
    yield "", "each of those sites must be pinned here: fedlora client peers"


def _rounds(recipe: Recipe) -> str:
    rounds = recipe.federation.rounds
    if recipe.participation_rate == 1:
        return f"each of {counted(rounds, 'round')}"
    return f"about {rounds * recipe.participation_rate:.3g} of {counted(rounds, 'round')}"


def _metrics(recipe: Recipe, site: SiteConfiguration) -> str:
    """Return which numbers leave besides, and how often."""
    names = ["train_loss and the number of examples, with each update"]
    if recipe.privacy.unit != "none" or recipe.privacy.secure_aggregation:
        names = []
    if asked := len(recipe.federation.evaluated_rounds):
        noised = ", noised" if recipe.privacy.unit == "example" else ""
        shares = [] if noised else _counted(recipe, site.policy)
        more = f", and how many are right by {' and '.join(shares)}" if shares else ""
        names.append(f"eval_loss_sum and eval_tokens{noised}{more}, at most {asked} times")
    if (measured := len(recipe.publish.text_rounds(recipe.federation))) and site.public_text:
        where = f"of {site.public_text.path}, at most {counted(measured, 'time')}"
        names.append(f"public_loss_sum and public_tokens {where}")
    if recipe.privacy.unit == "example":
        names.append("how many rows the ledger has, and their hash")
    return "; ".join(names) or "no other number"


def _counted(recipe: Recipe, policy: Policy) -> list[str]:
    """Return which shares of held-out rows the policy does not withhold."""
    named = {metric.name for metric in policy.metrics}
    return [name for name in SHARES.get(recipe.objective, ()) if f"eval_{name}_sum" in named]


def _copied(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Yield where the aggregator brings these numbers, if the recipe says so."""
    if recipe.trackers:
        yield "", f"the aggregator copies these numbers to its {', '.join(recipe.trackers)}"


def _privacy(recipe: Recipe) -> str:
    privacy = recipe.privacy
    if privacy.unit == "none":
        told = "sums" if privacy.secure_aggregation else "updates"
        return (
            f"none is promised: nothing bounds what the {told} tell of single records, and text "
            "can be reconstructed from them"
        )
    cost = f"ε {privacy.epsilon:g} at δ {privacy.delta:g} for the whole run"
    if privacy.unit == "example":
        return f"{cost}, for each training record, against all who see what leaves"
    if privacy.secure_aggregation:
        return (
            f"{cost}, for all data of a site together, against all who see the sums, which the "
            "sites noise themselves: the aggregator need not be trusted"
        )
    return (
        f"{cost}, for all data of a site together, against those who see the global adapters; the "
        "aggregator itself sees your updates, and nothing bounds what they tell it"
    )


def _time(recipe: Recipe) -> str:
    federation = recipe.federation
    most = duration(federation.rounds * federation.round_timeout)
    return (
        f"{counted(recipe.total_steps, 'step')} of training; the aggregator waits "
        f"{duration(federation.round_timeout)} for a round, {most} for all"
    )
