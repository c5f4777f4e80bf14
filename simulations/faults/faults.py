"""The faults: each is done to a deployment and, where it does not heal by itself, undone."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from random import Random

from simulations.faults.line import Mode
from simulations.faults.scene import Scene
from simulations.faults.site import set_clock

AT_SITE, AT_AGGREGATOR = ("trainer", "gate", "supernode"), ("superlink", "front", "coordinator")

_SHORT = 1.0, 8.0
"""Seconds that most faults last."""
_LONG = 55.0, 75.0
"""Seconds beyond the windows in which Flower waits for a sign of life, and supervisors too."""
_LITTLE, _MUCH = (1.0, 4.0), (30.0, 900.0)
"""Seconds that a clock is wrong by: within what Flower's signatures allow, and beyond."""

Strike = Callable[[Scene, Random], str]
"""Does a fault; says to what."""


@dataclass(frozen=True)
class Fault:
    """A kind of fault."""

    name: str
    strike: Strike
    long: bool = False
    """Whether a trial takes minutes, so that few are made."""


def faults(scene: Scene) -> Sequence[Fault]:
    """Return the faults that can be done here."""
    found = [*_kills(), *_stops(), *_lines()]
    if scene.small_disks:
        found += [Fault("disk full at site", _full_site), Fault("disk full at aggregator", _full)]
    if scene.clocks:
        found += [
            Fault("clock a little wrong", lambda s, r: _clock(s, r, _LITTLE)),
            Fault("clock wrong", lambda s, r: _clock(s, r, _MUCH)),
        ]
    return found


def private_faults(scene: Scene) -> Sequence[Fault]:
    """Return the faults that may come between a charge and its answer."""
    wanted = {f"kill {part}" for part in (*AT_SITE, "coordinator", "site host", "aggregator host")}
    return [fault for fault in faults(scene) if fault.name in wanted]


def _kills() -> list[Fault]:
    found = [
        *(Fault(f"kill {service}", _kill_at_site(service)) for service in AT_SITE),
        *(Fault(f"kill {service}", _kill_at_aggregator(service)) for service in AT_AGGREGATOR),
    ]
    return [
        *found,
        Fault("kill site supervisor", lambda s, r: _of(_site(s, r), s.kill_supervisor)),
        Fault("kill aggregator supervisor", lambda s, _: _of(s.server, s.kill_supervisor)),
        Fault("kill site host", lambda s, r: _host(s, r, _site(s, r))),
        Fault("kill aggregator host", lambda s, r: _host(s, r, s.server)),
        Fault("kill two", _kill_two),
    ]


def _stops() -> list[Fault]:
    found = []
    for word, span in (("stop", _SHORT), ("stop long", _LONG)):
        strikes = {service: _suspend(service, span) for service in (*AT_SITE, *AT_AGGREGATOR)}
        strikes["site host"] = _suspend_host(span, site=True)
        strikes["aggregator host"] = _suspend_host(span, site=False)
        found += [Fault(f"{word} {of}", strike, span is _LONG) for of, strike in strikes.items()]
    return found


def _lines() -> list[Fault]:
    modes: Sequence[Mode] = ("cut", "silent", "slow", "half")
    return [
        *(Fault(f"line {mode}", _line(mode, _SHORT)) for mode in modes),
        Fault("line cut long", _line("cut", _LONG), long=True),
        Fault("line silent long", _line("silent", _LONG), long=True),
    ]


def _site(scene: Scene, random: Random) -> Path:
    return random.choice(list(scene.sites.values()))


def _of(folder: Path, strike: Callable[[Path], None]) -> str:
    strike(folder)
    return folder.name


def _kill_at_site(service: str) -> Strike:
    return lambda s, r: _of(_site(s, r), lambda folder: s.kill(folder, service))


def _kill_at_aggregator(service: str) -> Strike:
    return lambda s, _: _of(s.server, lambda folder: s.kill(folder, service))


def _kill_two(scene: Scene, random: Random) -> str:
    first, second = random.sample((*AT_SITE, *AT_AGGREGATOR), 2)
    hit = []
    for service in (first, second):
        folder = scene.server if service in AT_AGGREGATOR else _site(scene, random)
        scene.kill(folder, service)
        hit.append(f"{service} of {folder.name}")
    return ", ".join(hit)


def _host(scene: Scene, random: Random, folder: Path) -> str:
    scene.kill_host(folder, pause=random.uniform(0, 5))
    return folder.name


def _suspend(service: str, span: tuple[float, float]) -> Strike:
    def strike(scene: Scene, random: Random) -> str:
        folder = scene.server if service in AT_AGGREGATOR else _site(scene, random)
        return _during(scene.suspended(folder, service), random, span, of=folder)

    return strike


def _suspend_host(span: tuple[float, float], *, site: bool) -> Strike:
    def strike(scene: Scene, random: Random) -> str:
        folder = _site(scene, random) if site else scene.server
        return _during(scene.host_suspended(folder), random, span, of=folder)

    return strike


def _during(
    fault: AbstractContextManager[None], random: Random, span: tuple[float, float], *, of: Path
) -> str:
    seconds = random.uniform(*span)
    with fault:
        time.sleep(seconds)
    return f"{of.name} for {seconds:.1f} s"


def _line(mode: Mode, span: tuple[float, float]) -> Strike:
    def strike(scene: Scene, random: Random) -> str:
        name, seconds = random.choice(list(scene.lines)), random.uniform(*span)
        scene.lines[name].become(mode)
        time.sleep(seconds)
        scene.lines[name].become("whole")
        return f"{name} for {seconds:.1f} s"

    return strike


def _full_site(scene: Scene, random: Random) -> str:
    folder = _site(scene, random)
    return _during(scene.disk_full(folder), random, _SHORT, of=folder)


def _full(scene: Scene, random: Random) -> str:
    return _during(scene.disk_full(scene.server), random, _SHORT, of=scene.server)


def _clock(scene: Scene, random: Random, span: tuple[float, float]) -> str:
    folder = _site(scene, random)
    wrong, seconds = random.choice((-1, 1)) * random.uniform(*span), random.uniform(*_SHORT)
    set_clock(folder, seconds=wrong)
    time.sleep(seconds)
    set_clock(folder, seconds=0)
    return f"{folder.name} by {wrong:.0f} s for {seconds:.1f} s"
