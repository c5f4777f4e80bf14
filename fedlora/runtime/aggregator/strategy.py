"""The aggregator's rounds: a Flower strategy that streams, refuses by name, and resumes."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fedlora.aggregation import new_optimizer
from fedlora.errors import FedloraError, StorageError
from fedlora.runtime import records
from fedlora.runtime.aggregator.cohort import cohort_of
from fedlora.runtime.aggregator.directory import Directory
from fedlora.runtime.aggregator.exchange import Exchange, content_of
from fedlora.runtime.aggregator.measured import Measured
from fedlora.runtime.aggregator.new_round import new_round
from fedlora.runtime.aggregator.site_logs import SiteLogs
from fedlora.runtime.events import (
    AnswerAwaited,
    EvaluationFailed,
    Observer,
    RoundFinished,
    RoundStarted,
    RunStarted,
    UpdateSettled,
)
from fedlora.runtime.run_folder import Checkpoint, RunFolder
from fedlora.wire.codec import Envelope, encode_state

_Configure = Callable[[int, ArrayRecord, ConfigRecord, Grid], Iterable[Message]]


class FederatedLora(Strategy):
    """Rounds of federated LoRA over the clients of one Flower grid.

    Guarantees:
        - A reply is checked, spooled to disk and dropped before the next is pulled.
        - A client that fails, answers wrongly or not at all is named in the round's record; it
          never ends the run. A round below its quorum does, and the run can be resumed.
        - Equal cohorts, updates and recipe give an equal adapter, bit for bit, whatever the order
          of arrival and however often the run was stopped and resumed.
    """

    def __init__(
        self,
        run: RunFolder,
        grid: Grid,
        *,
        observe: Observer,
        directory: Directory | None = None,
    ) -> None:
        self.run = run
        self.recipe = run.recipe()
        self.spec = run.spec()
        self.observe = observe
        self.checkpoint = run.load()
        nodes = directory.nodes if directory else None
        self.exchange = Exchange(grid, self.recipe, identities=nodes)
        evidence = directory.evidence if directory else None
        self.logs = SiteLogs.of(run, self.recipe, evidence=evidence)
        self._tail = 0.0

    def summary(self) -> None:
        """Say nothing: the recipe in the run folder is the summary."""

    # The recipe and the checkpoint say what Flower's other arguments would.
    def start(self, grid: Grid) -> Result:  # type: ignore[override]
        """Play the rounds that are not complete yet.

        Raises:
            RunError: too few clients are connected, or a round stays below its quorum.
            StorageError: the run folder cannot be written; the last checkpoint stays good.
        """
        rounds, complete = self.recipe.federation.rounds, self.checkpoint.round
        self.exchange.meet(self._task(complete))
        self.observe(
            RunStarted(
                rounds=rounds,
                complete=complete,
                sites=self.exchange.sites,
                evaluated=self.recipe.federation.evaluate_every > 0,
                unit=self.recipe.loss_unit,
            )
        )
        if self.checkpoint.record is None:
            self._measure_start(grid)
        for number in range(complete + 1, rounds + 1):
            self._play(grid, number)
        return Result(arrays=self._encoded(number=rounds))

    def _measure_start(self, grid: Grid) -> None:
        """Evaluate the base alone: sites do, before the first round, whatever all begin with."""
        started = time.monotonic()
        measured, bytes_down = self._evaluate(grid, 0)
        nobody: dict[str, object] = {"cohort": [], "folded": {}, "refused": {}}
        sizes = {"bytes_down": bytes_down, "bytes_up": 0}
        self._commit(0, started, **nobody, **measured.facts(), **sizes)

    def _play(self, grid: Grid, number: int) -> None:
        """Play one round and commit it."""
        started = time.monotonic()
        replies, down = self._send(self.configure_train, grid, number)
        self.aggregate_train(number, replies)
        fold = self._fold
        measured, bytes_down = self._evaluate(grid, number)
        self._commit(
            number,
            started,
            cohort=list(fold.cohort),
            folded=fold.folded,
            refused=fold.refused,
            tail=self._tail,
            **fold.facts,
            **measured.facts(),
            bytes_down=down + fold.sent_bytes + bytes_down,
            bytes_up=fold.received_bytes,
        )
        del self._fold  # and with it the adapter that the round began from

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Draw the cohort and instruct each client whose update is not spooled yet."""
        self.exchange.refresh()
        sites = self.exchange.sites
        cohort = cohort_of(self.run, self.recipe, number=server_round, connected=sites)
        self._fold = new_round(
            self.run,
            self.recipe,
            self._envelope(server_round),
            cohort=cohort,
            checkpoint=self.checkpoint,
            exchange=self.exchange,
            logs=self.logs,
            task=self._task(server_round),
        )
        self._fold.begin()
        self.observe(RoundStarted(round=server_round, cohort=cohort))
        for site in set(cohort) - set(self._fold.open):
            self.observe(UpdateSettled(round=server_round, site=site))
        for site in [site for site in self._fold.open if site not in sites]:
            self._refuse(site, "not connected")
        return self._instructions(self._fold.open, MessageType.TRAIN, config, arrays)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[None, None]:
        """Admit each reply as it arrives, and step to the next global adapter.

        Raises:
            RunError: fewer updates than the quorum were accepted.
        """
        fold = self._fold
        for reply in replies:
            self._admit(self.exchange.sender(reply), reply)
            del reply  # or it would stay while the next is waited for
        for site in fold.open:
            self._refuse(site, "no answer within federation.round_timeout")
        fold.require_quorum(self.run.path)
        update = fold.finish()
        for site in fold.refused.keys() & fold.admitted.keys():
            reason = fold.refused[site]
            self.observe(UpdateSettled(round=server_round, site=site, refused=reason))
        if update is None:
            self._tail = 0.0
            self.checkpoint = replace(self.checkpoint, round=server_round)
            return None, None
        optimizer = new_optimizer(self.recipe.federation)
        optimizer.restore(self.checkpoint.optimizer)
        step = optimizer.step(self.checkpoint.adapter, update)
        self._tail = step.tail
        self.checkpoint = Checkpoint(
            round=server_round,
            adapter=step.adapter,
            median_norm=fold.median_norm(),
            optimizer=optimizer.state(),
        )
        return None, None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Instruct the cohort to evaluate; before the first round and for releases, all sites."""
        published = {0, *self.recipe.publish.rounds(self.recipe.federation)}
        sites: tuple[str, ...] = ()
        if server_round in self.recipe.asked_rounds:
            whole = server_round in published
            sites = self.exchange.sites if whole else tuple(self._fold.cohort)
        return self._instructions(sites, MessageType.EVALUATE, config, arrays)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord:
        """Collect what each site measured, and why a site has nothing."""
        self._measured = Measured(recipe=self.recipe, round=server_round)
        for reply in replies:
            site = self.exchange.sender(reply)
            try:
                self._measured.take(site, records.metrics_of(self._content(site, reply)))
            except StorageError:
                raise  # a full disk here is no fault of the client
            except FedloraError as error:
                self._measured.unmeasured[site] = str(error)
                self.observe(EvaluationFailed(round=server_round, site=site, reason=str(error)))
        return MetricRecord(dict(self._measured.held_out))

    def _evaluate(self, grid: Grid, number: int) -> tuple[Measured, int]:
        replies, bytes_down = self._send(self.configure_evaluate, grid, number)
        self.aggregate_evaluate(number, replies)
        return self._measured, bytes_down

    def _send(
        self, configure: _Configure, grid: Grid, number: int
    ) -> tuple[Iterator[Message], int]:
        """Send a round's instructions; return the replies to come and the bytes that went out.

        Nothing here holds on to the encoded adapter: while replies come in, memory is for them.
        """
        arrays = self._encoded(number=number)
        messages = list(configure(number, arrays, self._task(number), grid))
        kind = messages[0].metadata.message_type if messages else ""

        def again(site: str) -> Iterable[Message]:
            return self._instructions(
                [site], kind, self._task(number), self._encoded(number=number)
            )

        def awaited(site: str, reason: str | None) -> None:
            self.observe(AnswerAwaited(round=number, site=site, reason=reason))

        replies = self.exchange.send(messages, again=again, awaited=awaited)
        return replies, len(messages) * sum(len(array.data) for array in arrays.values())

    def _instructions(
        self, sites: Iterable[str], message_type: str, task: ConfigRecord, arrays: ArrayRecord
    ) -> Iterable[Message]:
        """Return instructions, which say how far each site's logs had been seen to come.

        To the question who is there no site can be told: it is not known yet.
        """
        return self.exchange.instructions(
            sites, message_type, task, arrays=arrays, tell=self.logs.tell
        )

    def _content(self, site: str, reply: Message) -> RecordDict:
        """Return what a site replied, when neither of its logs is older than it was.

        Raises:
            WireError: the reply is an error, or a log is older.
            StorageError: the receipt cannot be kept.
        """
        content = content_of(reply)
        self.logs.take(site, content)
        return content

    def _admit(self, site: str, reply: Message) -> None:
        try:
            content = self._content(site, reply)
            metrics = records.metrics_of(content)
            self._fold.admit(site, records.unpack(content), metrics)
        except StorageError:
            raise  # a full disk here is no fault of the client
        except FedloraError as error:
            self._refuse(site, str(error))
        else:
            number, loss = self._fold.envelope.round, metrics.get("train_loss")
            self.observe(UpdateSettled(round=number, site=site, train_loss=loss))

    def _refuse(self, site: str, reason: str) -> None:
        self._fold.refuse(site, reason)
        self.observe(UpdateSettled(round=self._fold.envelope.round, site=site, refused=reason))

    def _commit(self, number: int, started: float, **facts: object) -> None:
        seconds = round(time.monotonic() - started, 3)
        record = {"round": number, "seconds": seconds, **facts}
        self.checkpoint = replace(self.checkpoint, record=record)
        self.run.save(self.checkpoint)
        self.checkpoint = self.run.load()  # what a resumed run would go on from, not in memory yet
        self.observe(RoundFinished(record=record))

    def _task(self, number: int) -> ConfigRecord:
        task = records.Task(recipe=self.recipe.to_yaml(), run=self.run.name, round=number)
        return task.to_record()

    def _encoded(self, *, number: int) -> ArrayRecord:
        envelope, compress = self._envelope(number), self.recipe.wire.compress
        return records.pack(encode_state(self.checkpoint.adapter, envelope, compress=compress))

    def _envelope(self, number: int) -> Envelope:
        return Envelope(spec=self.spec, run=self.run.name, round=number)
