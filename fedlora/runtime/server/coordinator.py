"""The coordinator: it plays the aggregator's runs, one after another, and never gives one up.

Flower never resumes a run whose ServerApp died. So the coordinator starts a Flower run for each
attempt at a fedlora run, is itself the executor of its ServerApp, and goes on from the last
checkpoint. A run that cannot go on pauses with its reason and is tried again.
"""

import logging
import re
import signal
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

import httpx
from flwr.supercore.run import RunNotRunningException

from fedlora.errors import FedloraError, RunError
from fedlora.release import home
from fedlora.runtime.aggregator import directory as aggregator
from fedlora.runtime.aggregator.evidence_receipts import EvidenceReceipts
from fedlora.runtime.aggregator.server import serve
from fedlora.runtime.carriers.superlink import carried
from fedlora.runtime.carriers.tasks import Endpoint
from fedlora.runtime.events import (
    AnswerAwaited,
    Event,
    Observer,
    RoundFinished,
    UpdateSettled,
)
from fedlora.runtime.processes import log
from fedlora.runtime.publication import Publication
from fedlora.runtime.reports.report import write_report
from fedlora.runtime.run_folder import RunFolder
from fedlora.runtime.server.app_bundle import app_bundle
from fedlora.runtime.server.configuration import Configuration
from fedlora.runtime.server.control import Control
from fedlora.runtime.server.directory import Directory
from fedlora.runtime.server.folder import ServerFolder
from fedlora.runtime.server.runs import Runs
from fedlora.signing import Signer

_POLL = 0.5
"""Seconds between looks for a run, or for the task of one."""

_TASK_WAIT = 60.0
"""Seconds in which a SuperLink makes the task of a run that was started."""


class _NoLongerWantedError(RunError):
    """The operator stopped the run."""


@dataclass(frozen=True)
class Coordinator:
    """Plays the runs of an aggregator's folder."""

    folder: ServerFolder

    @property
    def runs(self) -> Runs:
        """The runs."""
        return Runs(self.folder.runs)

    def work(self) -> None:
        """Play what is wanted, for ever."""
        idle = True
        while True:
            run = self.runs.next()
            if run is not None:
                self.play(run)
            elif not idle:
                log.say("no run to play")
            idle = run is None
            if idle:
                time.sleep(_POLL)

    def play(self, run: RunFolder) -> None:
        """Play a run until it is finished, stopped, or cannot go on for now.

        Raises:
            StorageError: where it stands cannot be written.
        """
        log.say("run begins", run=run.name, complete=len(run.records()))
        self.runs.note(run, "playing")
        try:
            self._play(run)
        except _NoLongerWantedError:
            self.runs.note(run, "stopped")
            log.say("run stopped", run=run.name)
        except (FedloraError, httpx.HTTPError, RunNotRunningException) as error:
            reason = str(error) or type(error).__name__
            self.runs.note(run, "paused", reason=reason)
            log.warn("run pauses", run=run.name, reason=reason)
        except Exception as error:  # whatever it is, it must not keep other runs from playing
            logging.getLogger(__name__).exception("run fails")
            self.runs.note(run, "paused", reason=f"{type(error).__name__}; the log says more.")
        else:
            self.runs.note(run, "finished")
            log.say("run finished", run=run.name, release=str(run.release))

    def _play(self, run: RunFolder) -> None:
        def still_wanted() -> None:
            if not self.runs.is_wanted(run):
                raise _NoLongerWantedError(run.name)

        endpoint = self._endpoint()
        token = self._task(endpoint)
        with carried(endpoint, token, still_wanted=still_wanted) as grid:
            observe = self._publishing(run, self._observer(run))
            serve(grid, run.path, observe=observe, directory=self._directory())
        write_report(run)

    def _task(self, endpoint: Endpoint) -> str:
        """Start a Flower run, those before it ended, and return the token of its ServerApp's task.

        Raises:
            RunError: the SuperLink does not answer, or makes no task.
        """
        with Control(self.folder) as control:
            for number, status in control.runs().items():
                if not status.startswith("finished"):
                    control.stop_run(number)
            control.start_run(app_bundle(), config={})
        deadline = time.monotonic() + _TASK_WAIT
        while (token := endpoint.acquire("flwr-serverapp")) is None:
            if time.monotonic() > deadline:
                raise RunError(f"SuperLink made no task of its run within {_TASK_WAIT:g} s.")
            time.sleep(_POLL)
        return token

    def _observer(self, run: RunFolder) -> Observer:
        """Return what logs the run's events, and notes whom it waits for."""
        awaited: dict[str, str] = {}

        def observe(event: Event) -> None:
            words = re.sub("(?<=[a-z])(?=[A-Z])", " ", type(event).__name__).lower()
            log.say(words, run=run.name, **asdict(event))
            before = dict(awaited)
            match event:
                case UpdateSettled(site=site) | AnswerAwaited(site=site, reason=None):
                    awaited.pop(site, None)
                case AnswerAwaited(site=site, reason=reason):
                    awaited[site] = str(reason)
                case RoundFinished():
                    awaited.clear()
            if awaited != before:
                lines = (f"  {site}: {reason}" for site, reason in sorted(awaited.items()))
                self.runs.note(run, "playing", reason="\n".join(lines))

        return observe

    def _publishing(self, run: RunFolder, observe: Observer) -> Observer:
        """Return what also publishes the run's releases, where there are a store and its key."""
        if not self.folder.publisher_key.is_file():
            return observe
        try:
            signer = Signer.load(self.folder.publisher_key)
            publisher = home.publisher(self.folder.store, signer, memory=self.folder.state)
        except FedloraError as error:
            log.warn("nothing is published", run=run.name, reason=str(error))
            return observe
        return Publication(run, publisher, observe).begin()

    def _directory(self) -> aggregator.Directory:
        directory = Directory(self.folder)
        return aggregator.Directory(
            nodes=directory.admitted,
            evidence=EvidenceReceipts(
                self.folder.evidence_receipts,
                signer=Signer.load(self.folder.aggregator_key),
                gates=directory.gates,
            ),
        )

    def _endpoint(self) -> Endpoint:
        configuration = Configuration.read(self.folder.configuration)
        return Endpoint(
            address=configuration.superlink_address,
            secret=self.folder.superexec_secret.read_bytes(),
            certificates=self.folder.ca_certificate.read_bytes(),
        )


def main() -> None:
    """Coordinate the folder that the command line names, until SIGTERM."""
    log.start("coordinator")
    signal.signal(signal.SIGTERM, _stop)
    Coordinator(ServerFolder(Path(sys.argv[1]))).work()


def _stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - signal's interface
    raise SystemExit(0)


if __name__ == "__main__":
    main()
