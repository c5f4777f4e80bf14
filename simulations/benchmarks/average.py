"""The aggregator's plain mean beside Flower's: how fast it is, and what it does with bad replies.

Both take in the same ten increments of 40 million float32 values, which are in memory when the
clock starts. Ours does what our strategy does: decodes, inspects, weighs, spools and folds each,
and makes the server step without momentum; its spool is kept in memory too. FedAvg is its
``aggregate_train``, which keeps nothing that a stopped round could go on from; so ours without a
spool stands beside it, and with the spool in the temporary folder. The bad replies are in
``bad_replies.py``.
"""

import math
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Message
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from fedlora.adapter import AdapterState
from fedlora.aggregation import new_aggregator, new_optimizer
from fedlora.errors import RunError
from fedlora.runtime.aggregator.fold import Fold
from fedlora.runtime.carriers.in_process import InProcessGrid
from fedlora.runtime.spool import Spool
from fedlora.wire.codec import Envelope, encode_update
from simulations.benchmarks import bad_replies
from simulations.benchmarks.measure import Bar, compare, interleaved, report
from simulations.benchmarks.replies import (
    adapter_spec,
    arrays_of,
    flower_reply,
    increment,
    recipe_for,
)

CLIENTS = 10
LIMITS = {"ours / FedAvg": 1 / 1.5, bad_replies.NAME: 0}

_RECIPE = recipe_for(
    CLIENTS, "federation.method=average", "federation.server_momentum=0", "wire.codec=fp32"
)
_ENVELOPE = Envelope(spec=adapter_spec(), run="average", round=1)
_IN_MEMORY = Path("/dev/shm")  # noqa: S108 - for a folder with a random name


class _NoSpool(Spool):
    """Keeps nothing."""

    def put(self, site: str, payload: bytes, metrics: Mapping[str, int | float]) -> None:
        """Keep nothing."""


def run(n: int) -> None:
    """Show what becomes of bad replies, time the good ones, and print the result."""
    refused = bad_replies.show()
    if not _IN_MEMORY.is_dir():
        raise RunError(f"{_IN_MEMORY} is needed, a folder that is kept in memory.")
    with (
        tempfile.TemporaryDirectory() as disk,
        tempfile.TemporaryDirectory(dir=_IN_MEMORY) as memory,
    ):
        bars = _speed(memory=Path(memory), disk=Path(disk), n=n)
    report("average", [*bars, refused], LIMITS)


def _speed(*, memory: Path, disk: Path, n: int) -> list[Bar]:
    grid = InProcessGrid(ClientApp(), clients=1)
    payloads, replies = [], []
    for client in range(CLIENTS):
        update = increment(_ENVELOPE.spec, seed=client, num_examples=client + 1)
        payloads.append(encode_update(update, _ENVELOPE, codec="fp32", compress=False))
        replies.append(flower_reply(grid, arrays_of(update), num_examples=client + 1))
    start = AdapterState.initial(_ENVELOPE.spec, seed=0)
    _require_same(start, payloads, replies)
    spools = {
        "ours": Spool(memory / "spool"),
        "ours, spool on disk": Spool(disk / "spool"),
        "ours, no spool": _NoSpool(memory / "none"),
    }

    def fed_avg() -> None:
        _fed_avg(replies)

    variants: dict[str, Callable[[], None]] = {"FedAvg": fed_avg}
    for name, spool in spools.items():
        variants[name] = partial(_ours, start, payloads, spool)
    seconds = interleaved(variants, n=n)
    return [
        compare(
            f"{name} / FedAvg",
            seconds,
            ours=name,
            peer="FedAvg",
            at_most=LIMITS.get(f"{name} / FedAvg"),
        )
        for name in spools
    ]


def _ours(start: AdapterState, payloads: Sequence[bytes], spool: Spool) -> None:
    _stepped(start, payloads, spool)
    shutil.rmtree(spool.folder, ignore_errors=True)


def _stepped(start: AdapterState, payloads: Sequence[bytes], spool: Spool) -> AdapterState:
    """Return the next global adapter, as the strategy gets it from a round's replies."""
    fold = Fold(
        recipe=_RECIPE,
        envelope=_ENVELOPE,
        cohort=_RECIPE.site_names,
        global_adapter=start,
        aggregator=new_aggregator(_RECIPE.federation, attackers=0),
        spool=spool,
        max_norm=math.inf,  # as after the first round, whose fold waits for all
    )
    fold.begin()
    for site, payload in zip(fold.cohort, payloads, strict=True):
        fold.admit(site, payload, {"train_loss": 1.0})
    return new_optimizer(_RECIPE.federation).step(start, fold.finish()).adapter


def _fed_avg(replies: Sequence[Message]) -> ArrayRecord:
    arrays, _ = FedAvg().aggregate_train(1, replies)
    if arrays is None:
        raise RunError("FedAvg gave no aggregate.")
    return arrays


def _require_same(
    start: AdapterState, payloads: Sequence[bytes], replies: Sequence[Message]
) -> None:
    """Do nothing if both make the same of their replies."""
    ours = _stepped(start, payloads, _NoSpool(Path("none"))).values - start.values
    peer = torch.cat([torch.from_numpy(a.numpy()).flatten() for a in _fed_avg(replies).values()])
    torch.testing.assert_close(ours, peer, rtol=1e-4, atol=1e-6)
