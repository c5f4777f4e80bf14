"""What a client sends in a round, beside float32 factors as FlowerTune's clients send them.

Both sides are whole Flower messages with one increment of a 40 million parameter adapter, in the
objects that a SuperNode pushes, all headers included. The values are heavier-tailed than those of
trained increments: Student's t with five degrees of freedom, in rows whose scales differ by orders.
(Increments trained on the demo lose less: 0.6 % with int8, 9 % with NF4.) Errors are relative, in
the Frobenius norm over all factors.

The bars are for the way up. On its way down the global adapter is float32, as Flower's; compressed,
it takes what ``fp32 zstd`` takes. That the end loss stays within 0.1 % of float32's is for
``python -m simulations.studies codecs`` to show.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from statistics import median

import numpy as np
import torch
from flwr.app import Message
from flwr.clientapp import ClientApp
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from torch import Tensor

from fedlora.adapter import AdapterSpec, InspectedUpdate
from fedlora.runtime import records
from fedlora.runtime.carriers.in_process import InProcessGrid
from fedlora.sections import Codec
from fedlora.wire.codec import Envelope, decode_update, encode_update
from fedlora.wire.encodings import ENCODINGS
from simulations.benchmarks.measure import Bar, interleaved, report
from simulations.benchmarks.replies import adapter_spec, flower_reply

LIMITS = {"int8": 0.26, "nf4": 0.14}
_PEER = "FlowerTune"
_MEGABYTE = 1e6
_MOST_BYTES = 2**31
_DEGREES_OF_FREEDOM = 5


@dataclass(frozen=True, kw_only=True)
class _Way:
    """One way to send the increment."""

    name: str
    megabytes: float
    """Of the whole message."""
    error: float
    """Of what is read, relative to what was sent."""
    encode: Callable[[], object]
    decode: Callable[[], object]


def run(n: int) -> None:
    """Measure bytes, seconds and errors of all codecs, and print the result."""
    grid = InProcessGrid(ClientApp(), clients=1)
    update = _increment(adapter_spec(), seed=0)
    peer = _flower_tune(grid, update)
    ours = [
        _ours(grid, update, codec=codec, compress=compress)
        for compress, codec in product((False, True), sorted(ENCODINGS, key=_by_bar))
    ]
    works = {
        f"{way.name} {work}": _silent(getattr(way, work))
        for way in (peer, *ours)
        for work in ("encode", "decode")
    }
    _print(peer, ours, interleaved(works, n=n))
    report("wire", [_bar(way, peer, n=n) for way in ours], LIMITS)


def _increment(spec: AdapterSpec, *, seed: int) -> InspectedUpdate:
    """Return an increment whose rows differ in scale, and whose values have heavy tails."""
    generator = np.random.default_rng(seed)
    values = torch.empty(spec.size)
    for tensor, start in spec.offsets():
        scales = 1e-4 * np.exp(generator.normal(size=spec.rank))
        drawn = generator.standard_t(_DEGREES_OF_FREEDOM, size=tensor.shape)
        drawn *= scales[:, None] if tensor.factor == "A" else scales
        values[start : start + tensor.size] = torch.from_numpy(drawn.ravel())
    return InspectedUpdate(spec=spec, values=values, num_examples=8)


def _flower_tune(grid: InProcessGrid, update: InspectedUpdate) -> _Way:
    # The names are PEFT's.
    arrays = {f"base_model.model.{t.name}.weight": v.numpy() for t, v in update.factors()}

    def encode() -> Message:
        return flower_reply(grid, arrays, num_examples=update.num_examples)

    message = encode()
    record = message.content.array_records["arrays"]
    return _Way(
        name=_PEER,
        megabytes=_travels(message),
        error=0,
        encode=encode,
        decode=lambda: [array.numpy() for array in record.values()],
    )


def _ours(grid: InProcessGrid, update: InspectedUpdate, *, codec: Codec, compress: bool) -> _Way:
    envelope = Envelope(spec=update.spec, run="benchmark", round=1)

    def encode() -> bytes:
        return encode_update(update, envelope, codec=codec, compress=compress)

    def decode() -> Tensor:
        read = decode_update(
            payload, envelope, codec=codec, compress=compress, max_bytes=_MOST_BYTES
        )
        return read.values

    payload = encode()
    content = records.reply({"train_loss": 1.0}, payload=payload)
    message = grid.create_message(content, "train", dst_node_id=1, group_id="1")
    error = (decode() - update.values).norm() / update.values.norm()
    return _Way(
        name=f"{codec} zstd" if compress else codec,
        megabytes=_travels(message),
        error=float(error),
        encode=encode,
        decode=decode,
    )


def _travels(message: Message) -> float:
    """Return the megabytes of the objects that a SuperNode pushes for a message."""
    objects = get_all_nested_objects(message).values()
    return sum(len(each.deflate()) for each in objects) / _MEGABYTE


def _bar(way: _Way, peer: _Way, *, n: int) -> Bar:
    ratio = way.megabytes / peer.megabytes
    return Bar(
        name=way.name,
        ours=way.megabytes,
        peer=peer.megabytes,
        ratio=ratio,
        unit="MB",
        n=n,
        holds=ratio <= LIMITS[way.name] if way.name in LIMITS else None,
    )


def _print(peer: _Way, ours: list[_Way], seconds: Mapping[str, list[float]]) -> None:
    print(f"{'':11}{'MB':>7}  {'ratio':>6}  {'encode s':>8}  {'decode s':>8}  {'error':>8}")
    for way in (peer, *ours):
        encode, decode = (median(seconds[f"{way.name} {work}"]) for work in ("encode", "decode"))
        print(
            f"{way.name:11}{way.megabytes:7.1f}  {way.megabytes / peer.megabytes:6.4f}"
            f"  {encode:8.2f}  {decode:8.2f}  {way.error:8.2%}"
        )
    print()


def _by_bar(codec: Codec) -> tuple[bool, str]:
    """Sort the codecs that have a bar first: the first stands for the benchmark."""
    return codec not in LIMITS, codec


def _silent(work: Callable[[], object]) -> Callable[[], None]:
    def silently() -> None:
        work()

    return silently
