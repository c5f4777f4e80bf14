"""The aggregator's plain mean beside Flower's: how fast it is, and what it does with bad replies.

``average`` through our strategy (decoding, inspection, spool, fold, server step without momentum)
and ``FedAvg.aggregate_train`` take in the same ten increments of 40 million float32 values, which
are in memory when the clock starts. What our strategy spools goes to memory too; the same with the
spool in the temporary folder stands beside it. The bad replies are in ``bad_replies.py``.
"""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from fedlora.adapter import AdapterState
from fedlora.errors import RunError
from fedlora.runtime.run_folder import RunFolder
from fedlora.runtime.strategy import FederatedLora
from fedlora.wire.codec import Envelope, encode_update
from simulations.benchmarks import bad_replies
from simulations.benchmarks.measure import Bar, compare, interleaved, report
from simulations.benchmarks.replies import (
    ForgetfulGrid,
    adapter_spec,
    app_of,
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
_SPEC = adapter_spec()
_TASK = ConfigRecord({"round": 1})
_IN_MEMORY = Path("/dev/shm")  # noqa: S108 - for a folder with a random name


def run(n: int) -> None:
    """Show what becomes of bad replies, time the good ones, and print the result."""
    refused = bad_replies.show()
    with tempfile.TemporaryDirectory() as disk:
        if not _IN_MEMORY.is_dir():
            raise RunError(f"{_IN_MEMORY} is needed, a folder that is kept in memory.")
        with tempfile.TemporaryDirectory(dir=_IN_MEMORY) as memory:
            bars = _speed(Path(memory), Path(disk), n=n)
    report("average", [*bars, refused], LIMITS)


def _speed(memory: Path, disk: Path, *, n: int) -> list[Bar]:
    run = RunFolder.create(_RECIPE, _SPEC, data={}, runs=memory)
    shutil.copytree(run.path, disk / run.name)
    envelope = Envelope(spec=_SPEC, run=run.name, round=1)
    grid = ForgetfulGrid(ClientApp(), clients=CLIENTS)
    payloads, replies = [], []
    for client in range(CLIENTS):
        update = increment(_SPEC, seed=client, num_examples=client + 1)
        payloads.append(encode_update(update, envelope, codec="fp32", compress=False))
        replies.append(flower_reply(grid, arrays_of(update), num_examples=client + 1))
    ours = _Ours(run, payloads)
    _require_same(ours, replies)

    def fed_avg() -> None:
        _fed_avg(replies)

    variants: dict[str, Callable[[], None]] = {
        "ours": ours.aggregate,
        "on disk": _Ours(RunFolder.open(disk / run.name), payloads).aggregate,
        "FedAvg": fed_avg,
    }
    seconds = interleaved(variants, n=n)
    name = "ours / FedAvg"
    return [
        compare(name, seconds, ours="ours", peer="FedAvg", at_most=LIMITS[name]),
        compare("spool on disk / FedAvg", seconds, ours="on disk", peer="FedAvg"),
    ]


class _Ours:
    """Our strategy with ten encoded replies, which it can take in again and again."""

    def __init__(self, run: RunFolder, payloads: Sequence[bytes]) -> None:
        def payload(site: str, _: int) -> bytes:
            return payloads[_RECIPE.site_names.index(site)]

        self._run = run
        self._grid = ForgetfulGrid(app_of(_RECIPE, payload), clients=CLIENTS)
        self._strategy = FederatedLora(run, self._grid, observe=lambda _: None)
        self._strategy.exchange.meet(_TASK)

    @property
    def adapter(self) -> AdapterState:
        """The global adapter."""
        return self._strategy.checkpoint.adapter

    def aggregate(self) -> None:
        """Take in all replies as those of one round."""
        strategy = self._strategy
        messages = strategy.configure_train(1, ArrayRecord(), _TASK, self._grid)
        strategy.aggregate_train(1, strategy.exchange.send(list(messages)))
        shutil.rmtree(self._run.spool)


def _fed_avg(replies: Sequence[Message]) -> ArrayRecord:
    arrays, _ = FedAvg().aggregate_train(1, replies)
    if arrays is None:
        raise RunError("FedAvg gave no aggregate.")
    return arrays


def _require_same(ours: _Ours, replies: Sequence[Message]) -> None:
    """Do nothing if both make the same of their replies."""
    before = ours.adapter.values
    ours.aggregate()
    mean = torch.cat([torch.from_numpy(a.numpy()).flatten() for a in _fed_avg(replies).values()])
    torch.testing.assert_close(ours.adapter.values - before, mean, rtol=1e-4, atol=1e-6)
