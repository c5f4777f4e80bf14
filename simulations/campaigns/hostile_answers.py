"""Answers that a hostile trainer could give, as the very bytes that its gate would read."""

import json
import struct
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch

from fedlora.adapter import AdapterUpdate, InspectedUpdate, TensorSpec
from fedlora.privacy.charge import Charge
from fedlora.runtime.client.frames import Hello
from fedlora.runtime.client.probes import Place, Report
from fedlora.wire.codec import Envelope, encode_trained, encode_update

_FRONT, _MAGIC_AND_LENGTH = 64, struct.Struct("<8sI")
_FINGERPRINT = "0" * 64
_HELLO = Hello(report=Report(user=1, place=Place(namespaces={}, folders={}), probes=()))
_A_CHARGE = Charge.of_steps(2, sensitivity=1.0, noise_multiplier=1.0, sampling_rate=0.1)

_UNKNOWN_FIELD = b"\xc2\x3e\x04data"
"""Field 1000 of a protobuf, of four bytes."""


def frame(header: Mapping[str, Any] | bytes, body: bytes = b"") -> bytes:
    """Return a frame as ``fedlora.runtime.client.frames`` writes it, or one with any header."""
    if not isinstance(header, bytes):
        header = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return struct.pack("<IQ", len(header), len(body)) + header + body


def answer(payload: bytes = b"", /, **metrics: object) -> bytes:
    """Return the frame of an answer."""
    return frame({"kind": "answer", "metrics": metrics}, payload)


def charge(of: Charge, /, *, purpose: str = "train", number: int = 1, **changes: object) -> bytes:
    """Return the frame that asks to commit a charge, with changes."""
    facts = asdict(of) | changes
    return frame(
        {
            "kind": "charge",
            "purpose": purpose,
            "number": number,
            "charge": facts,
            "data": _FINGERPRINT,
        }
    )


def plain_answers(update: AdapterUpdate, envelope: Envelope) -> dict[str, bytes]:
    """Return what must not pass where no privacy is asked for, by what it tries."""
    honest = encode_trained(update, envelope)
    return {
        **_with_tensors(update, envelope),
        **_of_metrics(honest),
        **_encodings(update, envelope, honest),
        **_frames(honest),
    }


def private_answers(update: AdapterUpdate, envelope: Envelope, planned: Charge) -> dict[str, bytes]:
    """Return what must not pass where each answer is charged, by what it tries."""
    done = answer(encode_trained(update, envelope))
    paid = charge(planned)
    return {
        "charging nothing": done,
        "charging more noise than is planned": charge(planned, noise_multiplier=99.0) + done,
        "charging fewer steps": charge(planned, steps=1) + done,
        "charging a negative number of steps": charge(planned, steps=-2) + done,
        "charging a lower sampling rate": charge(planned, sampling_rate=0.001) + done,
        "charging another clip norm": charge(planned, sensitivity=0.001) + done,
        "charging a clip norm that is not a number": charge(planned, sensitivity=float("nan")),
        "charging another round": charge(planned, number=2) + done,
        "charging the evaluation instead": charge(planned, purpose="evaluate") + done,
        "charging twice": paid + paid + done,
        "metrics beside a private update": paid
        + answer(encode_trained(update, envelope), eval_tokens=1),
    }


def _with_tensors(update: AdapterUpdate, envelope: Envelope) -> dict[str, bytes]:
    spec = update.spec
    extra = TensorSpec(module="a.place.for.text", factor="B", shape=(4, spec.rank))
    more = replace(spec, tensors=(*spec.tensors, extra))
    fewer = replace(spec, tensors=spec.tensors[:-1])
    swapped = replace(spec, tensors=(spec.tensors[1], spec.tensors[0], *spec.tensors[2:]))

    def encoded(of: Envelope, values: torch.Tensor, examples: int = update.num_examples) -> bytes:
        changed = AdapterUpdate(spec=of.spec, values=values, num_examples=examples)
        return answer(encode_trained(changed, of))

    values = update.values
    broken = values.clone()
    broken[7] = torch.nan
    return {
        "an extra tensor": encoded(replace(envelope, spec=more), torch.zeros(more.size)),
        "a missing tensor": encoded(replace(envelope, spec=fewer), values[: fewer.size].clone()),
        "tensors in another order": encoded(replace(envelope, spec=swapped), values),
        "values that are not numbers": encoded(envelope, broken),
        "more examples than the recipe allows": encoded(envelope, values, 10**6),
        "an update of another run": encoded(replace(envelope, run="another"), values),
        "an update of another round": encoded(replace(envelope, round=2), values),
    }


def _of_metrics(honest: bytes) -> dict[str, bytes]:
    def with_loss(value: str) -> bytes:
        return frame(f'{{"kind":"answer","metrics":{{"train_loss":{value}}}}}'.encode(), honest)

    return {
        "text as a metric": with_loss('"patient 17"'),
        "a list as a metric": with_loss("[1.0,2.0]"),
        "an object as a metric": with_loss('{"a":1.0}'),
        "a truth value as a metric": with_loss("true"),
        "a metric that is not a number": with_loss("NaN"),
        "a metric without bound": with_loss("1e999"),
        "a metric of 3,000 digits": with_loss("9" * 3000),
        "a metric with digits that nobody sees": with_loss("1.0000000000000000000017"),
        "a metric of an unknown name": answer(honest, patient_17=1.0),
        "a metric given twice": frame(
            b'{"kind":"answer","metrics":{"train_loss":1.0,"train_loss":2.0}}', honest
        ),
    }


def _encodings(update: AdapterUpdate, envelope: Envelope, honest: bytes) -> dict[str, bytes]:
    inspected = InspectedUpdate(
        spec=update.spec, values=update.values, num_examples=update.num_examples
    )

    def as_update(**form: Any) -> bytes:  # noqa: ANN401 - codec and compress
        return answer(encode_update(inspected, envelope, **form))

    magic, length = _MAGIC_AND_LENGTH.unpack_from(honest)
    start = _MAGIC_AND_LENGTH.size + length
    values = honest[start + -start % _FRONT :]
    header = honest[_MAGIC_AND_LENGTH.size : start]

    def rebuilt(head: bytes, *, padding: bytes = b"\0") -> bytes:
        front = _MAGIC_AND_LENGTH.pack(magic, len(head)) + head
        return answer(front + padding * (-len(front) % _FRONT) + values)

    bomb = bytes([0x28, 0xB5, 0x2F, 0xFD, 0xE0]) + struct.pack("<Q", 2**40)  # claims a terabyte
    return {
        "an update encoded as for the network": as_update(codec="fp32", compress=False),
        "another codec": as_update(codec="bf16", compress=False),
        "a compressed update": as_update(codec="fp32", compress=True),
        "a frame that claims to hold a terabyte": answer(honest[: start + -start % _FRONT] + bomb),
        "text behind the values": answer(honest + b"patient 17"),
        "text between header and values": rebuilt(header, padding=b"p"),
        "an unknown field in the header": rebuilt(header + _UNKNOWN_FIELD),
        "a header that is cut off": answer(honest[:40]),
        "an adapter of the wrong kind of file": answer(b"PK\x03\x04" + honest[4:]),
    }


def _frames(honest: bytes) -> dict[str, bytes]:
    done = answer(honest)
    return {
        "a frame that claims an exabyte": struct.pack("<IQ", 2, 2**60) + b"{}",
        "a header of four gigabytes": struct.pack("<IQ", 2**32 - 1, 0),
        "an unknown field in the frame": frame(
            {"kind": "answer", "metrics": {}, "note": "patient 17"}, honest
        ),
        "spaces in the frame": frame(b'{"kind": "answer", "metrics": {}}', honest),
        "escapes that spell the same": frame(b'{"kind":"\\u0061nswer","metrics":{}}', honest),
        "an object of another language": frame(b"\x80\x04\x95cposix\nsystem\n.", honest),
        "brackets without end": frame(b"[" * 60_000, honest),
        "a second hello": frame(_HELLO.model_dump_json().encode(), honest),
        "a charge where nothing is charged": charge(_A_CHARGE) + done,
        "an error of an unknown kind": frame({"kind": "failure", "error": "Exit", "text": "x"}),
        "silence": b"",
    }
