"""What a hostile aggregator could send: other bytes than an adapter's, other records, receipts."""

import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from fedlora.adapter import AdapterSpec, AdapterState, InspectedUpdate, TensorSpec
from fedlora.gate.evidence.statements import Receipt
from fedlora.recipe import Recipe
from fedlora.runtime import records
from fedlora.runtime.lock import spec_of
from fedlora.signing import Signer
from fedlora.wire.codec import Envelope, encode_state, encode_update
from simulations.campaigns.gated_site import SITE, GatedSite
from simulations.campaigns.hostile_instructions import Attempts, Send, task

_FRONT, _MAGIC_AND_LENGTH = 64, struct.Struct("<8sI")
_MAGIC = b"FEDLORA\x01"
_UNKNOWN_FIELD = b"\xc2\x3e\x04data"
"""Field 1000 of a protobuf, of four bytes."""


def payloads() -> Attempts:
    """Return what is no adapter as the recipe says, or is one in other bytes."""

    def rebuilt(change: Callable[[bytes, bytes, bytes], bytes]) -> Send:
        """Return what sends a header, its padding and values as ``change`` puts them together."""

        def send(site: GatedSite) -> Message:
            honest = records.unpack(site.instruction().content)
            _, length = _MAGIC_AND_LENGTH.unpack_from(honest)
            end = _MAGIC_AND_LENGTH.size + length
            start = end + -end % _FRONT
            header, padding = honest[_MAGIC_AND_LENGTH.size : end], honest[end:start]
            return site.instruction(payload=change(header, padding, honest[start:]))

        return send

    def front(header: bytes) -> bytes:
        whole = _MAGIC_AND_LENGTH.pack(_MAGIC, len(header)) + header
        return whole + bytes(-len(whole) % _FRONT)

    return {
        "an extra tensor": _of_spec(_with_extra),
        "a missing tensor": _of_spec(lambda spec: replace(spec, tensors=spec.tensors[:-1])),
        "tensors in another order": _of_spec(
            lambda spec: replace(spec, tensors=spec.tensors[::-1])
        ),
        "an adapter of another scaling": _of_spec(lambda spec: replace(spec, alpha=1e6)),
        "an adapter of another base": _of_spec(lambda spec: replace(spec, base_digest="1" * 64)),
        "an adapter of another run": _of_envelope(run="another"),
        "an adapter of another round": _of_envelope(round=2),
        "an update instead of an adapter": _update,
        "bytes behind the values": rebuilt(lambda head, _, values: front(head) + values + b"x"),
        "values that are cut off": rebuilt(lambda head, _, values: front(head) + values[:-4]),
        "bytes between header and values": rebuilt(
            lambda head, pad, values: front(head)[: -len(pad)] + b"x" * len(pad) + values
        ),
        "an unknown field in the header": rebuilt(
            lambda head, _, values: front(head + _UNKNOWN_FIELD) + values
        ),
        "a header that claims four gigabytes": rebuilt(
            lambda head, _, values: _MAGIC_AND_LENGTH.pack(_MAGIC, 2**32 - 1) + head + values
        ),
        "another file": rebuilt(lambda *_: b"PK\x03\x04" + bytes(100)),
        "no bytes": rebuilt(lambda *_: b""),
        "64 megabytes too many": rebuilt(
            lambda head, _, values: front(head) + bytes(2**26) + values
        ),
        "a frame that claims a terabyte": _zstd_bomb,
    }


def messages() -> Attempts:
    """Return messages that hold something else than an instruction."""

    def changed(change: Callable[[RecordDict], object], kind: str = "train") -> Send:
        return lambda site: site.instruction(kind, change=change)

    text = ConfigRecord({"note": "x"})
    array = Array(dtype="uint8", shape=(3,), stype="fedlora.wire.v1", data=b"abc")
    return {
        "a question who is there": changed(lambda c: c.pop("adapter"), "query"),
        "a question with an adapter": changed(lambda _: None, "query"),
        "training with an action beside it": changed(lambda _: None, "train.steal"),
        "a message of the system": changed(lambda _: None, "system"),
        "an error in place of an instruction": _error,
        "no task": changed(lambda c: c.pop("task")),
        "no adapter": changed(lambda c: c.pop("adapter")),
        "an extra record": changed(lambda c: c.update(extra=text)),
        "an extra record of numbers": changed(lambda c: c.update(extra=MetricRecord({"a": 1.0}))),
        "an extra key in the task": changed(lambda c: c.config_records["task"].update(script="x")),
        "an extra array": changed(lambda c: c.array_records["adapter"].update(more=array)),
        "an array under another name": changed(
            lambda c: c.update(adapter=ArrayRecord({"other": array}))
        ),
        "an array of another kind": changed(_stype("numpy.ndarray")),
        "a pickle": changed(_stype("pickle")),
        "a run that is bytes": changed(task(run=b"run")),
        "a recipe that is a list": changed(task(recipe=["a"])),
        "a ledger where there is none": changed(
            lambda c: c.update(ledger=ConfigRecord({"count": 0, "hash": "0" * 64}))
        ),
    }


def receipts() -> Attempts:
    """Return what comes without the aggregator's word of the log, or with another's."""

    def with_facts(facts: Callable[[GatedSite], Mapping[str, Any]]) -> Send:
        def send(site: GatedSite) -> Message:
            return site.instruction(
                change=lambda c: c.update(evidence=ConfigRecord(dict(facts(site))))
            )

        return send

    def signed(**changes: object) -> Send:
        return with_facts(lambda site: site.receipt(**changes).facts())

    return {
        "no receipt of the log": lambda site: site.instruction(change=lambda c: c.pop("evidence")),
        "a receipt signed by another": with_facts(_forged),
        "a receipt whose signature is of another": with_facts(
            lambda site: site.receipt().facts() | {"count": 0, "hash": "0" * 64}
        ),
        "a receipt of another site's log": signed(site="south"),
        "a receipt of entries that are not there": signed(count=10**6),
        "a receipt of another log": signed(hash="1" * 64),
        "a receipt with something beside it": with_facts(
            lambda site: site.receipt().facts() | {"note": "x"}
        ),
    }


def _forged(site: GatedSite) -> Mapping[str, Any]:
    head = site.gate.evidence.head()
    return Receipt.sign(
        Signer(Ed25519PrivateKey.generate()), count=head.count, hash=head.hash, site=SITE
    ).facts()


def ledger_heads() -> Attempts:
    """Return what says otherwise, or nothing, of how far the privacy ledger has come."""

    def head(**changes: Any) -> Send:  # noqa: ANN401 - as a record's
        return lambda site: site.instruction(
            change=lambda c: c.config_records["ledger"].update(changes)
        )

    return {
        "no word of the ledger": lambda site: site.instruction(change=lambda c: c.pop("ledger")),
        "rows of the ledger that are not there": head(count=1000),
        "another ledger": head(count=1, hash="1" * 64),
        "a negative number of rows": head(count=-1),
        "something beside the ledger's head": head(note="x"),
    }


def _stype(name: str) -> Callable[[RecordDict], object]:
    def change(content: RecordDict) -> None:
        data = records.unpack(content)
        array = Array(dtype="uint8", shape=(len(data),), stype=name, data=data)
        content["adapter"] = ArrayRecord({"adapter": array})

    return change


def _of_spec(change: Callable[[AdapterSpec], AdapterSpec]) -> Send:
    def send(site: GatedSite) -> Message:
        spec = change(spec_of(site.recipe))
        return site.instruction(state=AdapterState(spec=spec, values=torch.zeros(spec.size)))

    return send


def _with_extra(spec: AdapterSpec) -> AdapterSpec:
    extra = TensorSpec(module="a.place.for.more", factor="A", shape=(spec.rank, 8))
    return replace(spec, tensors=(*spec.tensors, extra))


def _of_envelope(**changes: Any) -> Send:  # noqa: ANN401 - as the envelope's
    def send(site: GatedSite) -> Message:
        state = site.initial()
        envelope = replace(Envelope(spec=state.spec, run="run", round=1), **changes)
        return site.instruction(payload=encode_state(state, envelope, compress=False))

    return send


def _update(site: GatedSite) -> Message:
    state = site.initial()
    update = InspectedUpdate(spec=state.spec, values=state.values, num_examples=1)
    envelope = Envelope(spec=state.spec, run="run", round=1)
    payload = encode_update(update, envelope, codec="fp32", compress=False)
    return site.instruction(payload=payload)


def _zstd_bomb(site: GatedSite) -> Message:
    """Return a compressed adapter, the first frame of which claims a terabyte."""
    recipe = Recipe.from_yaml(site.recipe.to_yaml(), overrides=["wire.compress=true"])
    honest = site.instruction(recipe=recipe, run="bomb")
    payload = bytearray(records.unpack(honest.content))
    place = payload.index(b"\x28\xb5\x2f\xfd")
    claim = bytes([0x28, 0xB5, 0x2F, 0xFD, 0xE4]) + struct.pack("<Q", 2**40)
    payload[place : place + len(claim)] = claim
    return site.instruction(recipe=recipe, run="bomb", payload=bytes(payload))


def _error(site: GatedSite) -> Message:
    return Message(Error(0, "x"), reply_to=site.instruction())
