"""What one sees while a run goes on: a line for each round, below it the round in progress."""

import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedlora.runtime.comparison import POOLED, losses_of, overall
from fedlora.runtime.events import (
    BaselineProgress,
    EvaluationFailed,
    Event,
    PublicationFailed,
    ReleasePublished,
    RoundFinished,
    RoundStarted,
    RunStarted,
    UpdateSettled,
)
from fedlora.runtime.reports.findings import MANY_SITES
from fedlora.runtime.reports.format import duration, size


class RunView:
    """Draws a run's events; on something that is not a terminal it prints the lines only."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)
        self._sites: tuple[str, ...] = ()
        self._evaluated = False
        self._round, self._rounds, self._played = 0, 0, 0
        self._cohort: tuple[str, ...] = ()
        self._settled: dict[str, UpdateSettled] = {}
        self._baseline: BaselineProgress | None = None
        self._started = time.monotonic()
        self._live = Live(console=self.console, get_renderable=self._draw, refresh_per_second=4)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def __call__(self, event: Event) -> None:
        """Take note of an event and draw it."""
        match event:
            case RunStarted():
                self._sites, self._rounds, self._round = event.sites, event.rounds, event.complete
                self._started, self._evaluated = time.monotonic(), event.evaluated
                if self._evaluated:
                    what = f"Held-out loss in nats per {event.unit}"
                    self.console.print(f"{what}, {self._where()}:")
                self.console.print(self._header(), style="bold", soft_wrap=True)
            case RoundStarted():
                self._round, self._cohort, self._settled = event.round, event.cohort, {}
            case UpdateSettled():
                self._settled[event.site] = event
                if event.refused:
                    text = f"        {event.site} refused: {event.refused}"
                    self.console.print(text, style="yellow", markup=False)
            case EvaluationFailed() | ReleasePublished() | PublicationFailed():
                self._say(event)
            case RoundFinished():
                self._finished(event.record)
            case BaselineProgress():
                if not self._baseline or self._baseline.name != event.name:
                    self.console.print(f"comparing with {_alone(event)}", style="dim")
                self._baseline = event

    def _finished(self, record: dict[str, Any]) -> None:
        self._played += record["round"] > 0
        self.console.print(self._line(record), soft_wrap=True)
        if reason := record.get("secure_sum", {}).get("abandoned"):
            text = f"        no sum, the adapter stays as it was: {reason}"
            self.console.print(text, style="yellow", markup=False)

    def _say(self, event: EvaluationFailed | ReleasePublished | PublicationFailed) -> None:
        match event:
            case EvaluationFailed():
                troubles: tuple[str, ...] = (f"{event.site} could not evaluate: {event.reason}",)
            case PublicationFailed():
                troubles = (f"not published: {event.reason}",)
            case ReleasePublished():
                where = event.promoted or "candidate, held back"
                self.console.print(f"        release {event.release[:12]}: {where}", markup=False)
                troubles = event.held_back
        for text in troubles:
            self.console.print(f"        {text}", style="yellow", markup=False)

    def _header(self) -> str:
        sites = "".join(f"{site[:7]:>8}" for site in self._sites) if self._few() else ""
        losses = f"{'loss':>8}{sites}" if self._evaluated else ""
        return f"{'round':<6}{losses}{'updates':>9}{'down':>9}{'up':>9}{'time':>8}"

    def _line(self, record: dict[str, Any]) -> str:
        losses = losses_of(record["evaluation"])
        total = f"{overall(losses).loss:.3f}" if losses else "-"
        each = [f"{losses[s].loss:.3f}" if s in losses else "-" for s in self._sites]
        sites = "".join(f"{text:>8}" for text in each) if self._few() else ""
        measured = f"{total:>8}{sites}" if self._evaluated else ""
        updates = f"{len(record['folded'])}/{len(record['cohort'])}"
        return (
            f"{record['round']:<6}{measured}{updates:>9}"
            f"{size(record['bytes_down']):>9}{size(record['bytes_up']):>9}"
            f"{duration(record['seconds']):>8}"
        )

    def _where(self) -> str:
        return "over all sites and at each" if self._few() else "over all sites"

    def _few(self) -> bool:
        return len(self._sites) <= MANY_SITES

    def _draw(self) -> Group:
        if self._baseline:
            label = f"comparing with {_alone(self._baseline)}"
            return Group(_bar(label, self._baseline.done, self._baseline.total))
        done, total = len(self._settled), max(1, len(self._cohort))
        share = (self._round - 1 + done / total) if self._round else 0
        label = f"round {self._round} of {self._rounds}{self._time_left()}"
        table = Table.grid(padding=(0, 2))
        for site in self._cohort if self._few() else ():
            table.add_row(f"  {site}", self._status(site))
        return Group(_bar(label, share, self._rounds), table)

    def _status(self, site: str) -> Text:
        settled = self._settled.get(site)
        if settled is None:
            waiting = next(s for s in self._cohort if s not in self._settled) == site
            return Text("training" if waiting else "waiting", style="cyan" if waiting else "dim")
        if settled.refused:
            return Text("refused", style="yellow")
        loss = "" if settled.train_loss is None else f", training loss {settled.train_loss:.3f}"
        return Text(f"accepted{loss}", style="green")

    def _time_left(self) -> str:
        if not self._played:
            return ""
        each = (time.monotonic() - self._started) / (self._played + 0.5)
        return f", about {duration(each * (self._rounds - self._round + 0.5))} left"


def _alone(event: BaselineProgress) -> str:
    return event.name if event.name == POOLED else f"{event.name} alone"


def _bar(label: str, done: float, total: float) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_row(ProgressBar(total=max(total, 1), completed=done, width=30), label)
    return table
