"""One bad client in five: what each of our methods does with its reply, and what Flower's do.

Ours plays a round with the bad reply, which is encoded as a forger would who knows
the format: where the tensors are others, the header still claims the right specification. Flower's
strategies get the same values, as the arrays that they expect.
"""

import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from textwrap import shorten

import torch
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, FedMedian, FedTrimmedAvg, Krum
from torch import Tensor

from fedlora.adapter import AdapterSpec, InspectedUpdate, TensorSpec
from fedlora.methods import METHODS, Method
from fedlora.runtime import records
from fedlora.runtime.aggregator.strategy import FederatedLora
from fedlora.runtime.carriers.in_process import InProcessGrid
from fedlora.runtime.run_folder import RunFolder
from fedlora.wire.codec import Envelope, encode_update
from simulations.benchmarks.measure import Bar
from simulations.benchmarks.replies import (
    ForgetfulGrid,
    adapter_spec,
    app_of,
    arrays_of,
    flower_reply,
    increment,
    recipe_for,
)

NAME = "bad replies not refused"
CLIENTS, BAD = 5, 2
NONE = "none"
SHORT = ("federation.rounds=1", "federation.evaluate_every=0", "wire.codec=fp32")
SPEC = adapter_spec(layers=1, width=64)

_Attack = Callable[[InspectedUpdate], InspectedUpdate]


def _not_a_number(update: InspectedUpdate) -> InspectedUpdate:
    values = update.values.clone()
    values[0] = torch.nan
    return replace(update, values=values)


def _extra_key(update: InspectedUpdate) -> InspectedUpdate:
    extra = TensorSpec(module="model.layers.0.mlp.extra_proj", factor="A", shape=(16, 4))
    values = torch.cat((update.values, torch.ones(extra.size)))
    return _with_tensors(update, (*update.spec.tensors, extra), values)


def _one_row(update: InspectedUpdate) -> InspectedUpdate:
    first, *others = update.spec.tensors
    row = replace(first, shape=(1, first.shape[1]))
    return _with_tensors(update, (row, *others), update.values[first.size - row.size :])


def _transposed(update: InspectedUpdate) -> InspectedUpdate:
    first, *others = update.spec.tensors
    turned = replace(first, shape=(first.shape[1], first.shape[0]))
    return _with_tensors(update, (turned, *others), update.values)


def _with_tensors(
    update: InspectedUpdate, tensors: tuple[TensorSpec, ...], values: Tensor
) -> InspectedUpdate:
    return replace(update, spec=replace(update.spec, tensors=tensors), values=values)


ATTACKS: Mapping[str, _Attack] = {
    "NaN": _not_a_number,
    "extra key": _extra_key,
    "shape (1, n)": _one_row,
    "wrong shape": _transposed,
    "values x 1e6": lambda update: replace(update, values=update.values * 1e6),
    "weight 1e12": lambda update: replace(update, num_examples=10**12),
    "weight -24": lambda update: replace(update, num_examples=-24),
}
STRATEGIES: Mapping[str, Callable[[], FedAvg]] = {
    "FedAvg": FedAvg,
    "FedMedian": FedMedian,
    "FedTrimmedAvg": FedTrimmedAvg,
    "Krum": lambda: Krum(num_malicious_nodes=1),
}


def show() -> Bar:
    """Print a table of ours and one of Flower's, and return how often a bad reply got through."""
    ours = {attack: {method: _refusal(method, attack) for method in METHODS} for attack in ATTACKS}
    print("One bad client in five, method by method: refused by name, or not\n")
    _print_table(
        {
            attack: {method: "refused" if reason else "FOLDED" for method, reason in row.items()}
            for attack, row in ours.items()
        }
    )
    print("\nThe reasons on record, of the default method:\n")
    for attack, row in ours.items():
        print(f"  {attack:14} {shorten(row['product'], 110, placeholder=' …')}")
    print("\nFlower: relative error of the aggregate against the mean of the honest clients\n")
    errors = {
        attack: {name: _error(name, attack) for name in STRATEGIES} for attack in (NONE, *ATTACKS)
    }
    _print_table(
        {attack: {name: _shown(e) for name, e in row.items()} for attack, row in errors.items()}
    )
    print()
    passed = sum(not reason for row in ours.values() for reason in row.values())
    harmed = sum(
        not error <= 2 * errors[NONE][name]
        for attack in ATTACKS
        for name, error in errors[attack].items()
    )
    return Bar(
        name=NAME,
        ours=passed,
        peer=harmed,
        ratio=passed / harmed if harmed else math.inf,
        unit=(
            f"cases (ours of {len(ATTACKS) * len(METHODS)}; Flower's of "
            f"{len(ATTACKS) * len(STRATEGIES)}: died, or twice the usual error)"
        ),
        n=1,
        holds=passed == 0,
    )


def _print_table(rows: Mapping[str, Mapping[str, str]]) -> None:
    columns = next(iter(rows.values()))
    print(f"  {'':14}" + "".join(f" {column:>13}" for column in columns))
    for name, cells in rows.items():
        print(f"  {name:14}" + "".join(f" {cell:>13}" for cell in cells.values()))


def _shown(error: float) -> str:
    return "dies" if math.isinf(error) else f"{error:.2g}"


def _refusal(method: Method, attack: str) -> str:
    """Return why our strategy refused the bad reply; empty if it did not, or not only that one."""
    recipe = recipe_for(CLIENTS, f"federation.method={method}", *SHORT)
    with tempfile.TemporaryDirectory() as runs:
        run = RunFolder.create(recipe, SPEC, data={}, runs=Path(runs))

        def payload(site: str, number: int) -> bytes:
            envelope = Envelope(spec=SPEC, run=run.name, round=number)
            envelope = records.envelope_of_update(envelope, recipe, site)
            update = _honest(envelope.spec, recipe.site_names.index(site))
            bad = site == recipe.site_names[BAD]
            return _encoded(ATTACKS[attack](update) if bad else update, envelope)

        grid = ForgetfulGrid(app_of(recipe, payload), clients=CLIENTS)
        FederatedLora(run, grid, observe=lambda _: None).start(grid)
        record = run.records()[1]
    honest = set(recipe.site_names) - {recipe.site_names[BAD]}
    reason = record["refused"].get(recipe.site_names[BAD], "")
    return str(reason) if set(record["folded"]) == honest else ""


def _encoded(update: InspectedUpdate, envelope: Envelope) -> bytes:
    """Return an update's bytes; whatever it is of, its header claims to be what was expected."""
    unsigned = replace(update, num_examples=update.num_examples % 2**64)
    forged = replace(envelope, spec=update.spec)
    data = encode_update(unsigned, forged, codec="fp32", compress=False)
    return data.replace(bytes.fromhex(update.spec.digest), bytes.fromhex(envelope.spec.digest), 1)


def _error(name: str, attack: str) -> float:
    """Return the error of a strategy's aggregate; infinite if the strategy raised one."""
    updates = [_honest(SPEC, client) for client in range(CLIENTS)]
    mean = torch.stack([u.values for u in updates if u is not updates[BAD]]).mean(0)
    if attack != NONE:
        updates[BAD] = ATTACKS[attack](updates[BAD])
    grid = InProcessGrid(ClientApp(), clients=1)
    replies = [flower_reply(grid, arrays_of(u), num_examples=u.num_examples) for u in updates]
    try:
        arrays, _ = STRATEGIES[name]().aggregate_train(1, replies)
    except Exception:  # noqa: BLE001 - whatever it is, it ends the peer's run
        return math.inf
    if arrays is None:
        return math.inf
    flat = torch.cat([torch.from_numpy(arrays[t.name].numpy()).flatten() for t in SPEC.tensors])
    return float((flat - mean).norm() / mean.norm())


def _honest(spec: AdapterSpec, client: int) -> InspectedUpdate:
    """Return what an honest client sends: what all have in common, and half as much of its own."""
    common, own = increment(spec, seed=0), increment(spec, seed=client + 1)
    return replace(common, values=common.values + own.values / 2)
