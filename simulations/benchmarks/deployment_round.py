"""Time of a deployed round beside training, against Flower's own client, executor and strategy.

Two sites each, TLS, node authentication, a database; in every round each site trains and evaluates.
The trainer answers at once, so what is measured is all but training; the adapter is the demo's,
float32 both ways, so that both sides carry the same bytes. Both deployments are up all the time and
play their runs in turn. What is compared is a run's median round.

Then both play a run with the embedded base model, ours with its own trainer, and the times that the
base is loaded are counted: Flower starts a process for each message.
"""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

from fedlora.cli.simulate import DEMO
from fedlora.recipe import Recipe, read_recipe
from fedlora.runtime.lock import spec_of
from fedlora.runtime.processes.service_state import Supervision
from fedlora.runtime.processes.supervisor import services_file
from fedlora.sections import EMBEDDED
from fedlora.training.base_model import resolve
from simulations.benchmarks.measure import Bar, compare, report
from simulations.benchmarks.round_parts import parts, show
from simulations.benchmarks.stock_flower import StockFlower
from simulations.loopback import Loopback

SITES, ROUNDS, LOADED_ROUNDS = 2, 3, 2
LIMITS = {"empty round": 0.5, "loads of the base": 0.5}
_TRIVIAL = ("simulations.site", "simulations.trivial_trainer")


def run(n: int) -> None:
    """Measure both, count both, and print the result."""
    with tempfile.TemporaryDirectory() as folder:
        bars = [_empty(Path(folder) / "empty", n=n), _loads(Path(folder) / "loads")]
    report("deployment_round", bars, LIMITS)


def _empty(folder: Path, *, n: int) -> Bar:
    """Compare rounds without work; print where the time of ours goes."""
    folder.mkdir()
    recipe = _recipe(rounds=ROUNDS)
    with (
        Loopback(folder, recipe, client=_TRIVIAL) as ours,
        StockFlower(folder, sites=SITES) as stock,
    ):
        size = spec_of(ours.recipe).size
        rounds: dict[str, Callable[[], float]] = {
            "ours": partial(_ours, ours),
            "peer": lambda: median(stock.play(rounds=ROUNDS, size=size).seconds),
        }
        seconds = _in_turn(rounds, n=n)
        logs = [
            (site.logs / "supernode.log", site.logs / "trainer.log") for site in ours.sites.values()
        ]
        show(parts([(_lines(supernode), _lines(trainer)) for supernode, trainer in logs]))
    return compare("empty round", seconds, ours="ours", peer="peer", at_most=LIMITS["empty round"])


def _in_turn(variants: dict[str, Callable[[], float]], *, n: int) -> dict[str, list[float]]:
    """Return what each variant says it took, run in turn ``n`` times after an uncounted one."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for repetition in range(n + 1):
        for name, play in variants.items():
            took = play()
            print(f"{name:4} {took:6.2f} s a round" + (" (not counted)" if not repetition else ""))
            if repetition:
                seconds[name].append(took)
    return seconds


def _ours(deployment: Loopback) -> float:
    records = deployment.run().records()
    refused = [record for record in records if record["refused"]]
    if refused:
        raise RuntimeError(f"A round of the benchmark is not whole: {refused}")
    return median(float(record["seconds"]) for record in records if record["round"])


def _loads(folder: Path) -> Bar:
    """Compare how often a site loads the base in a run."""
    folder.mkdir()
    with Loopback(folder, _recipe(rounds=LOADED_ROUNDS)) as deployment:
        deployment.run(timeout=600)
        loads = [_loads_of(site.logs / "trainer.log") for site in deployment.sites.values()]
        processes = [_trainers_of(site.path) for site in deployment.sites.values()]
    with StockFlower(folder, sites=SITES) as stock:
        base = str(resolve(EMBEDDED, None))
        answered = stock.play(rounds=LOADED_ROUNDS, size=1, base_model=base).processes
    peer = len(set(answered)) / SITES
    print(f"Over {LOADED_ROUNDS} rounds, which are {2 * LOADED_ROUNDS} messages to a site:")
    print(f"ours: {loads} loads of the base in {processes} processes, by site")
    print(f"peer: {len(answered)} loads in {len(set(answered))} processes, of {SITES} sites\n")
    return Bar(
        name="loads of the base",
        ours=max(loads),
        peer=peer,
        ratio=max(loads) / peer,
        unit="loads",
        n=1,
        holds=loads == processes == [1] * SITES,
    )


def _loads_of(log: Path) -> int:
    return sum('"base model loaded"' in line for line in _lines(log))


def _trainers_of(folder: Path) -> int:
    """Return how many trainers a site has had."""
    told = Supervision.read(services_file(folder))
    return sum(1 + each.restarts for each in told.services if each.name == "trainer") if told else 0


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def _recipe(*, rounds: int) -> Recipe:
    """Return the demo's recipe for two of its sites, with float32 on the wire."""
    demo = read_recipe(DEMO).model_dump(mode="json", exclude={"lock"})
    demo["datasets"] = demo["datasets"][:SITES]
    demo["federation"] |= {"sites": None, "rounds": rounds, "local_steps": 1, "evaluate_every": 1}
    demo["wire"] |= {"codec": "fp32"}
    demo["simulation"] |= {"compare": False}
    return Recipe.model_validate(demo)
