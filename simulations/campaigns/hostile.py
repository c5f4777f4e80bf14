"""A hostile aggregator and a hostile trainer: each thing that they try, and what stops it.

The aggregator's instructions are before a real gate (``hostile_aggregator``), and its app bundle is
sent to a real SuperNode (``hostile_bundle``); programs are in the trainer's place under the very
isolation of a site (``hostile_trainer``), which takes root.
"""

import json
from collections.abc import Sequence

from simulations.campaigns import hostile_aggregator, hostile_bundle, hostile_trainer
from simulations.campaigns.hostile_trainer import Outcome

_NAME, _BY = 48, 110
"""Letters that the table shows."""


def run(*, trials: int, seed: int) -> None:  # noqa: ARG001 - the list is as long as it is
    """Try everything once and print what became of it."""
    outcomes = [
        *_shown("aggregator", hostile_aggregator.attempts(seed=seed)),
        *_shown("aggregator", hostile_bundle.attempts()),
        *_shown("trainer", hostile_trainer.attempts()),
    ]
    survived = sum(each.blocked for each in outcomes)
    result = {"name": "hostile", "trials": len(outcomes), "survived": survived, "seed": seed}
    print(json.dumps(result | {"holds": survived == len(outcomes)}))


def _shown(who: str, outcomes: Sequence[Outcome]) -> Sequence[Outcome]:
    """Print what became of each attempt; an instruction is blocked only if it is on record."""
    for each in outcomes:
        state = "blocked" if each.blocked else "NOT BLOCKED"
        print(f"{who:10}  {state:11}  {each.name[:_NAME]:{_NAME}}  {each.by[:_BY]}", flush=True)
    return outcomes
