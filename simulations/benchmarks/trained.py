"""What it costs in accuracy to take clients in one by one, on adapters that the demo's sites train.

After each of three rounds the aggregator's stream, cut to the adapter's rank, stands beside the
best adapter of that rank for the same mean, from a dense decomposition in float64.
"""

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from fedlora import products
from fedlora.adapter import AdapterState
from fedlora.aggregation.product import Product
from fedlora.runtime.aggregator.server import serve
from fedlora.runtime.plan import plan
from fedlora.runtime.simulation import start
from simulations.benchmarks.measure import Bar
from simulations.studies.aggregation import sites
from simulations.studies.attacks import HostileGrid, Sent, honestly
from simulations.studies.trials import study_recipe

NAME = "stream of 8 trained, excess / error"
LIMIT = 0.002
"""Excess over the optimum's error, relative to it."""
_SETTING = (
    "federation.rounds=3",
    "federation.evaluate_every=0",
    "federation.server_momentum=0",
    "wire.codec=fp32",
)

Dense = dict[str, Tensor]
"""A matrix for each module."""


def bar() -> Bar:
    """Train, and return the comparison of the round in which streaming lost most."""
    with tempfile.TemporaryDirectory() as folder:
        run = start(plan(study_recipe(*_SETTING, datasets=sites())), runs=Path(folder).resolve())
        grid = HostileGrid(run, attack=honestly, attackers=0)
        serve(grid, run.path, observe=lambda _: None)
    errors = [_errors(sent) for sent in grid.sent.values()]
    streamed, optimum = max(errors, key=lambda pair: pair[0] / pair[1])
    excess = streamed - optimum
    return Bar(
        name=NAME,
        ours=excess,
        peer=optimum,
        ratio=excess / optimum,
        unit="Frobenius norm",
        n=len(errors),
        holds=excess <= LIMIT * optimum,
    )


def _errors(sent: Sent) -> tuple[float, float]:
    """Return how far the stream and the optimum are from the mean of a round's products."""
    spec, weight = sent.received.spec, 1 / sum(update.num_examples for update in sent.updates)
    mean: Dense = {}
    for update in sent.updates:
        for module, matrix in _dense(sent.received.plus(update)).items():
            term = weight * update.num_examples * matrix
            mean[module] = mean[module] + term if module in mean else term
    stream = Product()
    stream.begin(sent.received)
    for update in sent.updates:
        stream.add(update, float(update.num_examples))  # it overwrites the update
    retained = sent.received.plus(stream.finish())
    streamed = _dense(products.combine([(1.0, retained)], into=spec).state)
    missed = [(mean[module] - streamed[module]).norm() for module in mean]
    tails = [torch.linalg.svdvals(matrix)[spec.rank :].norm() for matrix in mean.values()]
    return float(torch.stack(missed).norm()), float(torch.stack(tails).norm())


def _dense(state: AdapterState) -> Dense:
    return {
        module: state.spec.scaling * up.double() @ down.double()
        for module, down, up in state.pairs()
    }
