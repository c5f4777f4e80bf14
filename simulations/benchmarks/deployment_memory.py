"""Peak memory of a deployed aggregator's processes, by the number of sites on this machine.

Each deployment plays two rounds of an adapter of 40 million parameters, whose base nobody has: the
recipe is locked to shapes alone, and the trainers answer at once. What is reported is the peak of
each process as the kernel keeps it (``VmHWM``), its program and libraries included.
"""

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

from fedlora.lock import BaseDigests
from fedlora.recipe import Recipe
from fedlora.runtime.lock import locked
from simulations.benchmarks.measure import Bar
from simulations.benchmarks.replies import LORA, adapter_spec
from simulations.loopback import Loopback

SITES = (2, 8)
LIMITS = {"deployed, most / least sites": 1.1}
_PROCESSES = ("coordinator", "front", "superlink")
_TRIVIAL = ("simulations.site", "simulations.trivial_trainer")
_TIMEOUT = 1800.0


def bars() -> list[Bar]:
    """Measure each number of sites once, print the peaks, and compare their sums."""
    found = {sites: peaks(sites) for sites in SITES}
    print("Peak of each of a deployed aggregator's processes, in MB:\n")
    print("sites  " + "".join(f"{name:>13}" for name in (*_PROCESSES, "together")))
    for sites, each in found.items():
        values = (*each.values(), sum(each.values()))
        print(f"{sites:5}  " + "".join(f"{value:13.0f}" for value in values))
    print()
    least, most = (sum(found[sites].values()) for sites in (min(SITES), max(SITES)))
    [name] = LIMITS
    return [
        Bar(
            name=name,
            ours=most,
            peer=least,
            ratio=most / least,
            unit="MB",
            n=1,
            holds=most / least <= LIMITS[name],
        )
    ]


def peaks(sites: int, *, layers: int = 32) -> Mapping[str, float]:
    """Return the peak of each process, in megabytes, of a deployment with that many sites."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Loopback(Path(folder), _recipe(sites, layers=layers), client=_TRIVIAL) as deployment,
    ):
        deployment.run(timeout=_TIMEOUT)
        return {name: _peak(deployment, name) for name in _PROCESSES}


def _peak(deployment: Loopback, service: str) -> float:
    process = deployment.process(deployment.server.path, service)
    if process is None or not process.alive:
        raise RuntimeError(f"The aggregator's {service} does not run.")
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    if not found:
        raise RuntimeError("/proc has no VmHWM: this benchmark needs Linux.")
    return int(found[1]) * 1024 / 1e6


def _recipe(sites: int, *, layers: int) -> Recipe:
    """Return the default recipe for that many sites by name, locked to an adapter of Llama-7B."""
    data = ", ".join(f"{{path: standard-library, site: site-{n}}}" for n in range(sites))
    text = f"{{datasets: [{data}], privacy: {{unit: none}}}}"
    short = ("federation.rounds=2", "federation.evaluate_every=0", "federation.local_steps=1")
    recipe = Recipe.from_yaml(text, overrides=[*LORA, *short])
    nobodys = BaseDigests(weights_digest="0" * 64, tokenizer_digest="0" * 64)
    return locked(recipe, adapter_spec(layers=layers), nobodys)
