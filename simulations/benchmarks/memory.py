"""Peak memory of the aggregator's process, by the number of clients, beside Flower's FedAvg.

Ours plays two whole rounds of the default recipe on an adapter of 40 million parameters, so that
the second has a server momentum; encoded replies come from files, one at a time. FedAvg takes in as
many adapters once. Each measurement has a process of its own, which has everything imported and has
played a small run before it counts: what is reported comes on top of that.

Then whole deployments: ``deployment_memory.py``.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from flwr.app import Message
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from fedlora.adapter import AdapterSpec, AdapterState
from fedlora.runtime.aggregator.strategy import FederatedLora
from fedlora.runtime.carriers.in_process import InProcessGrid
from fedlora.runtime.run_folder import RunFolder
from fedlora.wire.codec import Envelope, encode_update
from simulations.benchmarks import deployment_memory
from simulations.benchmarks.measure import Bar, report
from simulations.benchmarks.replies import (
    ForgetfulGrid,
    adapter_spec,
    app_of,
    arrays_of,
    flower_reply,
    increment,
    recipe_for,
)

CLIENTS = (2, 16, 64)
FLOWER_CLIENTS = (2, 16)
"""With 64 clients, FedAvg would need more than 10 GB."""
LIMITS = {"most / least memory": 1.05, "most memory / adapter": 5}
ROUNDS = 2
VARIANTS = 4
"""Different increments among the clients."""

_ADAPTER = adapter_spec().size * 4 / 1e6
"""Megabytes of an adapter in float32."""


def run(_: int) -> None:
    """Measure each number of clients once and print the result."""
    ours, flower = {}, {}
    for clients in CLIENTS:
        with tempfile.TemporaryDirectory() as folder:
            _elsewhere("write", Path(folder), clients)
            ours[clients] = _elsewhere("ours", Path(folder), clients)
    for clients in FLOWER_CLIENTS:
        with tempfile.TemporaryDirectory() as folder:
            flower[clients] = _elsewhere("flower", Path(folder), clients)
    print("Peak above the bare process in MB, and in adapters of float32:\n")
    print("clients           ours          FedAvg")
    for clients, peak in ours.items():
        peer = _shown(flower[clients]) if clients in flower else "not tried"
        print(f"{clients:7}  {_shown(peak)}  {peer:>14}")
    print()
    deployed = deployment_memory.bars()
    report("memory", [*_bars(ours, flower), *deployed], LIMITS | deployment_memory.LIMITS)


def _shown(peak: float) -> str:
    return f"{peak:7.0f} {peak / _ADAPTER:6.2f}"


def _bars(ours: Mapping[int, float], flower: Mapping[int, float]) -> list[Bar]:
    largest, smallest = max(ours.values()), min(ours.values())
    common = max(flower)
    pairs = {
        "most / least memory": (largest, smallest),
        "most memory / adapter": (largest, _ADAPTER),
        f"ours / FedAvg, {common} clients": (ours[common], flower[common]),
    }
    return [
        Bar(
            name=name,
            ours=mine,
            peer=peer,
            ratio=mine / peer,
            unit="MB",
            n=1,
            holds=mine / peer <= LIMITS[name] if name in LIMITS else None,
        )
        for name, (mine, peer) in pairs.items()
    ]


def _elsewhere(task: str, folder: Path, clients: int) -> float:
    """Do a task in a new process, and return the megabytes that it answers with."""
    command = [sys.executable, "-m", "simulations.benchmarks.memory", task]
    command += [str(folder), str(clients)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(json.loads(done.stdout))


def _write(folder: Path, clients: int, spec: AdapterSpec) -> None:
    """Make a run, and files with what its clients reply in each round."""
    recipe = recipe_for(clients, f"federation.rounds={ROUNDS}")
    run = RunFolder.create(recipe, spec, data={}, runs=folder / "runs")
    for variant in range(VARIANTS):
        update = increment(spec, seed=variant)
        for number in range(1, ROUNDS + 1):
            envelope = Envelope(spec=spec, run=run.name, round=number)
            wire = recipe.wire
            data = encode_update(update, envelope, codec=wire.codec, compress=wire.compress)
            (folder / f"round-{number}-{variant}").write_bytes(data)


def _play(folder: Path, clients: int) -> None:
    """Play the run that ``_write`` made."""

    def payload(site: str, number: int) -> bytes:
        variant = int(site.removeprefix("site-")) % VARIANTS
        return (folder / f"round-{number}-{variant}").read_bytes()

    [path] = (folder / "runs").glob("*/")
    run = RunFolder.open(path)
    grid = ForgetfulGrid(app_of(run.recipe(), payload), clients=clients)
    FederatedLora(run, grid, observe=lambda _: None).start(grid)


def _average(folder: Path, clients: int, spec: AdapterSpec) -> None:
    """Let Flower's FedAvg take in adapters that are read from a file as they come."""
    path = folder / f"adapter-{spec.size}"
    torch.randn(spec.size, generator=torch.Generator().manual_seed(0)).numpy().tofile(path)
    grid = InProcessGrid(ClientApp(), clients=1)

    def replies() -> Iterator[Message]:
        for _ in range(clients):
            adapter = AdapterState(spec=spec, values=torch.from_file(str(path), size=spec.size))
            yield flower_reply(grid, arrays_of(adapter), num_examples=8)

    FedAvg().aggregate_train(1, replies())


def _megabytes(field: str) -> float:
    """Return a field of this process's memory: ``VmRSS`` for now, ``VmHWM`` for the peak."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    if not found:
        raise RuntimeError(f"/proc/self/status has no {field}: this benchmark needs Linux.")
    return int(found[1]) * 1024 / 1e6


def _main(task: str, folder: Path, clients: int) -> None:
    """Do one task in this process, and print the megabytes that it took at its peak."""
    spec, small = adapter_spec(), adapter_spec(layers=1, width=32)
    if task == "write":
        _write(folder, clients, spec)
        _write(folder / "small", 2, small)
        print(0)
        return
    if task == "ours":
        _play(folder / "small", 2)
    else:
        _average(folder, 2, small)
    bare = _megabytes("VmRSS")
    with suppress(OSError):  # else the peak counts from the start, when it was lower
        Path("/proc/self/clear_refs").write_text("5")
    if task == "ours":
        _play(folder, clients)
    else:
        _average(folder, clients, spec)
    print(_megabytes("VmHWM") - bare)


if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
