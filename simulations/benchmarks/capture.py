"""A captured deployment: what passed on the wire, in the front's requests, and by the sites' logs.

A real run of the demo's recipe on loopback, two sites with their own trainers. Each site's line to
the front goes through a proxy that counts what TCP carries, both ways; the front counts the bodies
of the requests inside by itself. The sites stop before anything is read, so that all three counts
are of the same traffic.
"""

import re
import socket
import tempfile
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from fedlora.cli.simulate import DEMO
from fedlora.document import write_yaml
from fedlora.gate.evidence.entries import Logged, Received, Released
from fedlora.gate.evidence.log import EvidenceLog
from fedlora.recipe import Recipe, read_recipe
from fedlora.runtime.client.folder import SiteFolder
from fedlora.runtime.enrolment import ENROL_PATH, JoinBundle
from fedlora.runtime.server.configuration import Configuration
from fedlora.signing import Signer
from simulations.benchmarks.measure import Bar
from simulations.benchmarks.traffic import Exchange, explain, show
from simulations.loopback import Loopback

LIMITS = {"payload down, log / sent": 1.0, "payload up, log / taken": 1.0}
_SITES, _ROUNDS = 2, 2
_COUNTED = re.compile(
    r'^fedlora_front_(received|sent)_bytes_total\{path="([^"]+)"\} (\d+)$', re.MULTILINE
)
_PIECE = 65536


class Tap:
    """Passes connections on to ``target`` (``host:port``) while the block runs, and counts."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._server = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self.bytes: Counter[str] = Counter()
        """That passed ``up``, to the target, and ``down``."""

    @property
    def address(self) -> str:
        """Where it listens, ``host:port``."""
        return f"127.0.0.1:{self._server.getsockname()[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed: the block has ended
            while True:
                site = self._server.accept()[0]
                threading.Thread(target=self._connect, args=(site,), daemon=True).start()

    def _connect(self, site: socket.socket) -> None:
        with site, suppress(OSError), socket.create_connection(self._target) as front:
            down = threading.Thread(target=self._pass, args=("down", front, site), daemon=True)
            down.start()
            self._pass("up", site, front)
            down.join()

    def _pass(self, way: str, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while piece := source.recv(_PIECE):
                with self._lock:
                    self.bytes[way] += len(piece)
                sink.sendall(piece)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


@dataclass(frozen=True, kw_only=True)
class Captured:
    """The three counts, and what the aggregator says that it sent and took."""

    wire: Counter[str]
    exchanges: Sequence[Exchange]
    entries: Sequence[Logged]
    payloads: Counter[str]


def run() -> list[Bar]:
    """Capture a run, print what its bytes are, and compare payloads with the log."""
    captured = _captured()
    print(f"\nWhat passed between {_SITES} sites and the aggregator in {_ROUNDS} rounds:\n")
    wire = captured.wire
    show(explain(captured.exchanges, captured.entries, up=wire["up"], down=wire["down"]))
    print()
    logged = {
        "down": sum(e.entry.size for e in captured.entries if isinstance(e.entry, Received)),
        "up": sum(e.entry.size for e in captured.entries if isinstance(e.entry, Released)),
    }
    pairs = {
        "payload down, log / sent": (logged["down"], captured.payloads["down"]),
        "payload up, log / taken": (logged["up"], captured.payloads["up"]),
        "wire / payload": (wire.total(), captured.payloads.total()),
    }
    return [
        Bar(
            name=name,
            ours=ours,
            peer=peer,
            ratio=ours / peer,
            unit="bytes",
            n=1,
            holds=ours == peer if name in LIMITS else None,
        )
        for name, (ours, peer) in pairs.items()
    ]


def _captured() -> Captured:
    with tempfile.TemporaryDirectory() as name, ExitStack() as taps:
        wires: list[Counter[str]] = []

        def tap(folder: Path) -> None:
            join = SiteFolder(folder).join
            if join.exists():
                bundle = JoinBundle.read(join)
                there = taps.enter_context(Tap(bundle.aggregator))
                wires.append(there.bytes)
                moved = bundle.model_copy(update={"aggregator": there.address})
                text = write_yaml(moved.model_dump(exclude_none=True))
                join.write_text(text, encoding="utf-8")

        with Loopback(Path(name), _recipe(), prepare=tap) as deployment:
            records = deployment.run(timeout=600).records()
            for site in deployment.sites.values():
                deployment.supervisor(site.path).terminate()
                deployment.supervisor(site.path).wait(60)
            return Captured(
                wire=sum(wires, Counter[str]()),
                exchanges=list(_exchanges(deployment)),
                entries=[e for site in deployment.sites.values() for e in _entries(site)],
                payloads=Counter(
                    down=sum(record["bytes_down"] for record in records),
                    up=sum(record["bytes_up"] for record in records),
                ),
            )


def _exchanges(deployment: Loopback) -> Iterator[Exchange]:
    """Yield all exchanges of a path as one, but those of enrolment, which no tap saw."""
    port = Configuration.read(deployment.server.configuration).metrics_port
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    counted = {(way, path): int(count) for way, path, count in _COUNTED.findall(text)}
    for path in sorted({path for _, path in counted} - {ENROL_PATH}):
        yield Exchange(
            path=path,
            request=counted.get(("received", path), 0),
            response=counted.get(("sent", path), 0),
        )


def _entries(folder: SiteFolder) -> Sequence[Logged]:
    signer = Signer.load(folder.gate_key)
    return EvidenceLog(folder.evidence, site=folder.path.name, signer=signer).entries()


def _recipe() -> Recipe:
    """Return the demo's recipe for two of its sites."""
    demo = read_recipe(DEMO).model_dump(mode="json", exclude={"lock"})
    demo["datasets"] = demo["datasets"][:_SITES]
    demo["federation"] |= {"sites": None, "rounds": _ROUNDS, "local_steps": 1, "evaluate_every": 1}
    demo["simulation"] |= {"compare": False}
    return Recipe.model_validate(demo)
