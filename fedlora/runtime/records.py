"""Our values inside Flower's records. Both directions of the conversation are defined here.

The aggregator's instruction holds the resolved recipe, the run, the round and, except when it asks
who is there, the encoded global adapter. A site's reply holds its name, or allow-listed metrics
and, after training, one encoded update. Where sites protect examples, the reply also says how far
the site's ledger has come, and the instruction how far the aggregator has seen it come. Of a
deployed site's evidence log both say the same, each signed.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedlora.chained_file import Head
from fedlora.errors import WireError
from fedlora.gate.evidence.statements import Receipt, SignedHead, Statement
from fedlora.recipe import Recipe
from fedlora.sections import NAME
from fedlora.wire.codec import Envelope

STYPE = "fedlora.wire.v1"
"""Serialisation type of the one array that a message carries."""

_RUN = "[A-Za-z0-9][A-Za-z0-9_.-]{0,127}"
"""Regular expression of a run's name: a recipe's, and when it began."""

_ADAPTER, _TASK, _METRICS, _SITE, _LEDGER = "adapter", "task", "metrics", "site", "ledger"
_EVIDENCE = "evidence"

_Statement = TypeVar("_Statement", bound=Statement)


@dataclass(frozen=True, kw_only=True)
class Task:
    """What the aggregator asks of a site."""

    recipe: str
    """The resolved recipe as YAML."""
    run: str
    round: int

    def to_record(self) -> ConfigRecord:
        """Return the task as Flower carries it."""
        return ConfigRecord({"recipe": self.recipe, "run": self.run, "round": self.round})

    @classmethod
    def of(cls, content: RecordDict) -> Self:
        """Read the task from an instruction.

        Raises:
            WireError: there is no such task.
        """
        record = content.config_records.get(_TASK, ConfigRecord())
        recipe, run, number = record.get("recipe"), record.get("run"), record.get("round")
        if not (isinstance(recipe, str) and isinstance(run, str) and type(number) is int):
            raise WireError("The message holds no task: a recipe, a run and a round were expected.")
        if not re.fullmatch(_RUN, run):  # it will name a folder at the site
            raise WireError(f"run: a name of {_RUN} was expected, but it is {run!r:.80}.")
        if not 0 <= number < 2**32:
            raise WireError(f"round: 0 or a 32-bit number above was expected, but it is {number}.")
        return cls(recipe=recipe, run=run, round=number)


def envelope_of_update(envelope: Envelope, recipe: Recipe, site: str) -> Envelope:
    """Return what a site's reply to training is about: the part that its round sends."""
    factors = recipe.federation.facts.sent(envelope.round)
    return replace(envelope, spec=envelope.spec.part(factors, rank=recipe.rank_of(site)))


def instruction(task: ConfigRecord, arrays: ArrayRecord | None) -> RecordDict:
    """Return the content of an instruction."""
    content = RecordDict({_TASK: task})
    if arrays is not None:
        content[_ADAPTER] = arrays
    return content


def require_instruction(content: RecordDict, *, private: bool) -> None:
    """Do nothing if an instruction to a deployed site holds all that it should, and nothing else.

    Args:
        content: of the message.
        private: whether the site protects examples, and so must be told of its ledger.

    Raises:
        WireError: it holds something else.
    """
    expected = {_TASK, _ADAPTER, _EVIDENCE} | ({_LEDGER} if private else set())
    if content.keys() != expected:
        raise WireError(
            f"The instruction holds the records {', '.join(sorted(content)) or 'none':.200}, but "
            f"{', '.join(sorted(expected))} were expected."
        )
    keys = content.config_records[_TASK].keys()
    if keys != {"recipe", "run", "round"}:
        raise WireError(
            f"The task holds {', '.join(sorted(keys)):.200}, of which some are unknown."
        )


def introduction(site: str) -> RecordDict:
    """Return the content of a reply that says which site this is."""
    return RecordDict({_SITE: ConfigRecord({"name": site})})


def reply(metrics: Mapping[str, int | float], *, payload: bytes | None = None) -> RecordDict:
    """Return the content of a reply to training or evaluation."""
    content = RecordDict({_METRICS: MetricRecord(dict(metrics))})
    if payload is not None:
        content[_ADAPTER] = pack(payload)
    return content


def pack(payload: bytes) -> ArrayRecord:
    """Return encoded adapter bytes as one Flower array: hundreds of arrays cost four times that."""
    array = Array(dtype="uint8", shape=(len(payload),), stype=STYPE, data=payload)
    return ArrayRecord({_ADAPTER: array})


def unpack(content: RecordDict) -> bytes:
    """Return the encoded adapter of a message.

    Raises:
        WireError: there is not exactly one array, or it is not ours.
    """
    arrays = content.array_records.get(_ADAPTER, ArrayRecord())
    if list(arrays) != [_ADAPTER] or arrays[_ADAPTER].stype != STYPE:
        types = ", ".join(array.stype for array in arrays.values()) or "none"
        raise WireError(f"One array of type {STYPE} was expected, but {types:.200} came.")
    return arrays[_ADAPTER].data


def add_head(content: RecordDict, head: Head) -> None:
    """Say in a message how far a site's ledger has come: a count of rows and a hash."""
    content[_LEDGER] = ConfigRecord({"count": head.count, "hash": head.hash})


def head_of(content: RecordDict) -> Head:
    """Return how far a site's ledger has come, as a message says.

    Raises:
        WireError: it does not, or says something else.
    """
    record = dict(content.config_records.get(_LEDGER, {}))
    count, digest = record.pop("count", None), record.pop("hash", None)
    if isinstance(count, int) and isinstance(digest, str) and not record:
        sound = not isinstance(count, bool) and 0 <= count < 2**63
        if sound and re.fullmatch("[0-9a-f]{64}", digest):
            return Head(count=count, hash=digest)
    raise WireError(
        "The message does not say how far the site's ledger has come: a count of rows and the "
        "SHA-256 of the last were expected, and nothing else."
    )


def add_evidence(content: RecordDict, statement: Statement) -> None:
    """Say in a message how far a site's evidence log has come: a signed head, or a receipt."""
    content[_EVIDENCE] = ConfigRecord(statement.facts())


def signed_head_of(content: RecordDict) -> SignedHead:
    """Return how far a site's evidence log has come, as its reply says.

    Raises:
        WireError: it does not, or says something else; the signature is not looked at.
    """
    return _statement_of(content, SignedHead)


def receipt_of(content: RecordDict) -> Receipt:
    """Return how far the aggregator has seen the evidence log come, as an instruction says.

    Raises:
        WireError: as ``signed_head_of``.
    """
    return _statement_of(content, Receipt)


def _statement_of(content: RecordDict, kind: type[_Statement]) -> _Statement:
    try:
        return kind.read(dict(content.config_records.get(_EVIDENCE, {})))
    except ValueError as error:
        raise WireError(
            f"The message holds no {kind.kind} of the site's evidence log: {error}."
        ) from None


@dataclass(frozen=True, kw_only=True)
class Digests:
    """What evidence says of a message's content."""

    size: int
    """Bytes of its arrays: of the payload, if it is as it should be."""
    payload: str | None
    """SHA-256 of the one array's bytes; none if there is not exactly one."""
    content: str
    """SHA-256 of all records but the one about evidence."""


def digests_of(content: RecordDict) -> Digests:
    """Return the digests of a message's content.

    Hashed is canonical JSON, by record and key: numbers, texts and truth values as they are, bytes
    in hexadecimal, an array as ``[dtype, shape, stype, SHA-256 of its bytes]``.
    """
    sizes: list[int] = []
    hashes: list[str] = []

    def shown(value: object) -> Any:  # noqa: ANN401 - whatever JSON has
        match value:
            case Array():
                sizes.append(len(value.data))
                hashes.append(hashlib.sha256(value.data).hexdigest())
                return [value.dtype, list(value.shape), value.stype, hashes[-1]]
            case list():
                return [shown(each) for each in value]
            case bytes():
                return {"hex": value.hex()}
        return value

    facts = {
        name: [type(record).__name__, {key: shown(value) for key, value in record.items()}]
        for name, record in content.items()
        if name != _EVIDENCE
    }
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    payload = hashes[0] if len(hashes) == 1 else None
    digest = hashlib.sha256(text.encode("ascii")).hexdigest()
    return Digests(size=sum(sizes), payload=payload, content=digest)


def metrics_of(content: RecordDict) -> dict[str, int | float]:
    """Return the metrics of a reply.

    Raises:
        WireError: there are none, or one is not a single number.
    """
    metrics: dict[str, int | float] = {}
    if _METRICS not in content.metric_records:
        raise WireError("The reply holds no metrics.")
    for name, value in content.metric_records[_METRICS].items():
        if isinstance(value, list):
            raise WireError(f"The metric {name!r:.80} is a list; a single number was expected.")
        metrics[name] = value
    return metrics


def site_name_of(content: RecordDict) -> str:
    """Return the name with which a site introduced itself.

    Raises:
        WireError: it did not, or the name is none that a recipe can give.
    """
    name = content.config_records.get(_SITE, ConfigRecord()).get("name")
    if not isinstance(name, str):
        raise WireError("The reply does not say which site it is from.")
    if not re.fullmatch(NAME, name):  # it will name a file
        raise WireError(f"The site calls itself {name!r:.80}; a name of {NAME} was expected.")
    return name
