"""What a site has answered: asked the same again, it sends the very same bytes.

Fresh noise would be a new charge; equal bytes tell nothing new.
"""

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Message

from fedlora.adapter import AdapterSpec
from fedlora.atomic import storage_errors
from fedlora.errors import StorageError
from fedlora.gate import chain
from fedlora.runtime import records
from fedlora.runtime.site.asked import recipe_of
from fedlora.runtime.site.memory import SiteMemory
from fedlora.runtime.spool import Spool

_KEEP = chain.KEEP + 1
"""Rounds whose answers are kept.

The chain lets the adapters of its last rounds come again: by each of them the evaluation of its own
round and the training of the next can be asked for.
"""

_COPIES, _FLOAT32, _MARGIN = 5, 4, 2**20
"""Of an adapter's values: in the outbox, in the error feedback, two against drift, and beside what
one replaces.

The bytes of a value, and those that logs take.
"""


@dataclass(frozen=True)
class Outbox:
    """The answers of one site in one run, on disk before they are sent."""

    memory: SiteMemory

    def answer(self, message: Message) -> Message | None:
        """Return the reply to an instruction that was answered before; none if it was not.

        Raises:
            StorageError: it was, but the answer cannot be read.
        """
        name = self.name_of(message)
        if name not in self._spool.sites():
            return None
        payload, metrics = self._spool.get(name)
        return Message(records.reply(metrics, payload=payload or None), reply_to=message)

    def payload(self, name: str) -> bytes:
        """Return the payload of an answer by its name.

        Raises:
            StorageError: it cannot be read.
        """
        return self._spool.get(name)[0]

    def keep(self, message: Message, reply: Message) -> None:
        """Keep the reply to an instruction, before it is sent.

        Raises:
            StorageError: it cannot be written.
        """
        metrics = records.metrics_of(reply.content)
        payload = records.unpack(reply.content) if reply.content.array_records else b""
        self._spool.put(self.name_of(message), payload, metrics)
        oldest = records.Task.of(message.content).round - _KEEP
        for name in self._spool.sites():
            if int(name.partition("-")[0]) <= oldest:
                (self._spool.folder / name).unlink(missing_ok=True)

    @staticmethod
    def name_of(message: Message) -> str:
        """Return the name of an answer: the round, the kind, and a digest of all that was asked.

        A recipe that is written otherwise asks the same.
        """
        task = records.Task.of(message.content)
        digest = hashlib.sha256(recipe_of(task.recipe).digest.encode())
        digest.update(records.unpack(message.content))
        kind = message.metadata.message_type.partition(".")[0]
        return f"{task.round:08}-{kind}-{digest.hexdigest()}"

    @property
    def _spool(self) -> Spool:
        return Spool(self.memory.folder / "outbox")


def require_room(folder: Path, spec: AdapterSpec) -> None:
    """Do nothing if an answer can be kept; one that cannot would be charged for again and again.

    Raises:
        StorageError: it cannot.
    """
    needed = _COPIES * spec.size * _FLOAT32 + _MARGIN
    with storage_errors(folder):
        free = shutil.disk_usage(folder).free
    if free < needed:
        raise StorageError(
            f"{folder}: {free:,} bytes are free there, but an answer takes up to {needed:,}. Make "
            "room: the aggregator asks again."
        )
