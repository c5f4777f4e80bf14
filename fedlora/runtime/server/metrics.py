"""What the front counts, and what Prometheus reads of it and of sites and runs.

The text format is Prometheus's own, version 0.0.4:
https://prometheus.io/docs/instrumenting/exposition_formats/
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fedlora.runtime.server.authority import days_left
from fedlora.runtime.server.directory import Directory
from fedlora.runtime.server.folder import ServerFolder

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Traffic:
    """Requests and bytes of the front since it started."""

    requests: Counter[tuple[str, int]] = field(default_factory=Counter)
    """By path and status; paths that the front does not know count as ``other``."""
    received: Counter[str] = field(default_factory=Counter)
    """Bytes of bodies, by path."""
    sent: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric's name, what it is, and its values."""

    name: str
    kind: str
    help: str
    values: Mapping[Labels, float]

    def lines(self) -> Iterator[str]:
        """Yield the metric in Prometheus's text format."""
        yield f"# HELP {self.name} {self.help}"
        yield f"# TYPE {self.name} {self.kind}"
        for labels, value in self.values.items():
            inner = ",".join(f'{name}="{_escaped(text)}"' for name, text in labels)
            shown = f"{value:.16g}"  # a count to the last byte
            yield f"{self.name}{{{inner}}} {shown}" if inner else f"{self.name} {shown}"


def exposition(folder: ServerFolder, traffic: Traffic, *, nodes: Mapping[int, str] | None) -> str:
    """Return all metrics in Prometheus's text format.

    Args:
        folder: The aggregator's.
        traffic: What the front has counted.
        nodes: What SuperLink says of each node; None if it does not answer.

    Raises:
        EnrolmentError: the directory is damaged.
        RunError: the certificate cannot be read.
    """
    metrics = (*_of_front(folder, traffic), *_of_sites(folder, nodes), *_of_runs(folder.runs))
    return "\n".join(line for metric in metrics for line in metric.lines()) + "\n"


def online(folder: ServerFolder, nodes: Mapping[int, str]) -> Mapping[str, bool]:
    """Return for each admitted site whether its SuperNode is there.

    Raises:
        EnrolmentError: the directory is damaged.
    """
    admitted = Directory(folder).admitted()
    return {site: nodes.get(node_id) == "online" for node_id, site in admitted.items()}


def _of_front(folder: ServerFolder, traffic: Traffic) -> Iterator[Metric]:
    yield Metric(
        name="fedlora_front_requests_total",
        kind="counter",
        help="Requests that the front has answered.",
        values={
            (("path", path), ("status", str(status))): count
            for (path, status), count in traffic.requests.items()
        },
    )
    for name, counted in (("received", traffic.received), ("sent", traffic.sent)):
        yield Metric(
            name=f"fedlora_front_{name}_bytes_total",
            kind="counter",
            help=f"Bytes of bodies that the front has {name}.",
            values={(("path", path),): count for path, count in counted.items()},
        )
    yield Metric(
        name="fedlora_certificate_days_left",
        kind="gauge",
        help="Days until the front's certificate ends.",
        values={(): days_left(folder.front_certificate)},
    )


def _of_sites(folder: ServerFolder, nodes: Mapping[int, str] | None) -> Iterator[Metric]:
    states = Counter(entry.state for entry in Directory(folder).entries())
    yield Metric(
        name="fedlora_superlink_up",
        kind="gauge",
        help="Whether SuperLink answers.",
        values={(): float(nodes is not None)},
    )
    yield Metric(
        name="fedlora_sites",
        kind="gauge",
        help="Sites by state.",
        values={(("state", state),): count for state, count in states.items()},
    )
    if nodes is not None:
        yield Metric(
            name="fedlora_site_online",
            kind="gauge",
            help="Whether an admitted site's SuperNode is there.",
            values={(("site", site),): is_on for site, is_on in online(folder, nodes).items()},
        )


def _of_runs(runs: Path) -> Iterator[Metric]:
    rounds: dict[Labels, float] = {}
    seconds: dict[Labels, float] = {}
    refused: Counter[Labels] = Counter()
    for path in sorted(runs.glob("*/rounds.jsonl")):
        run = ("run", path.parent.name)
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        rounds[run,] = len(records)
        if records:
            seconds[run,] = records[-1]["seconds"]
        refused.update((run, ("site", s)) for each in records for s in each.get("refused") or ())
    yield Metric(
        name="fedlora_run_rounds",
        kind="gauge",
        help="Rounds that a run has completed.",
        values=rounds,
    )
    yield Metric(
        name="fedlora_run_last_round_seconds",
        kind="gauge",
        help="How long a run's last round took.",
        values=seconds,
    )
    yield Metric(
        name="fedlora_run_refused_updates_total",
        kind="counter",
        help="Updates of a site that a run has refused.",
        values=refused,
    )


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
