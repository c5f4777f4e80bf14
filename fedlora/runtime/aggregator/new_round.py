"""What a round needs before its first answer comes."""

import math
from collections.abc import Sequence

from flwr.app import ConfigRecord

from fedlora.aggregation import Aggregator, new_aggregator
from fedlora.recipe import Recipe
from fedlora.runtime.aggregator.central_budget import ClientBudget, NoisedFirst
from fedlora.runtime.aggregator.exchange import Exchange
from fedlora.runtime.aggregator.fold import Fold
from fedlora.runtime.aggregator.secure_sum import SecureSum
from fedlora.runtime.aggregator.site_logs import SiteLogs
from fedlora.runtime.run_folder import Checkpoint, RunFolder
from fedlora.runtime.spool import Spool
from fedlora.wire.codec import Envelope


def new_round(
    run: RunFolder,
    recipe: Recipe,
    envelope: Envelope,
    *,
    cohort: Sequence[str],
    checkpoint: Checkpoint,
    exchange: Exchange,
    logs: SiteLogs,
    task: ConfigRecord,
) -> Fold | SecureSum:
    """Return what takes a round's answers and makes its update of them.

    Args:
        run: where updates are spooled.
        recipe: of the run.
        envelope: what the round is about.
        cohort: its clients, sorted.
        checkpoint: what it begins from.
        exchange: in which a secure sum asks further.
        logs: of what each site has logged, which each of its instructions tells.
        task: what such instructions begin with.
    """
    if recipe.privacy.secure_aggregation:
        return SecureSum(
            recipe=recipe,
            envelope=envelope,
            cohort=cohort,
            global_adapter=checkpoint.adapter,
            aggregator=new_aggregator(recipe.federation, attackers=recipe.attackers),
            budget=_budget(run, recipe, number=envelope.round),
            exchange=exchange,
            logs=logs,
            task=task,
        )
    return Fold(
        recipe=recipe,
        envelope=envelope,
        cohort=cohort,
        global_adapter=checkpoint.adapter,
        aggregator=_aggregator(run, recipe, number=envelope.round),
        spool=Spool(run.spool / f"round-{envelope.round:04}"),
        max_norm=_largest_norm(recipe, checkpoint, number=envelope.round),
    )


def _budget(run: RunFolder, recipe: Recipe, *, number: int) -> ClientBudget | None:
    hidden = recipe.privacy.unit == "client"
    return ClientBudget(run, recipe, number=number) if hidden else None


def _aggregator(run: RunFolder, recipe: Recipe, *, number: int) -> Aggregator:
    method = new_aggregator(recipe.federation, attackers=recipe.attackers)
    if recipe.privacy.unit != "client":
        return method
    return NoisedFirst(method, run, recipe, number=number)


def _largest_norm(recipe: Recipe, checkpoint: Checkpoint, *, number: int) -> float | None:
    """Return the largest norm that an update may have; none where no round before says it."""
    facts, norm = recipe.federation.facts, checkpoint.median_norm
    if recipe.privacy.unit == "client":
        return math.inf  # clipping bounds them, and no update may be held against others
    if facts.sent(number) != facts.sent(number - 1):
        return None  # it was of other factors
    return norm and norm * recipe.federation.max_update_norm
