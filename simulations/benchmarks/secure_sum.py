"""What a secure sum costs a client and the aggregator, beside Flower's SecAgg+ and beside no masks.

Eight clients with 40 million float32 values each. A client's time is that from its values to the
bytes of its masked vector, with seven pairs' masks and its own: ours is writing it in fixed point
and the stage ``mask``; Flower's is the stage of its mod that does the same. The aggregator's time
is that from the vectors of eight clients, or of seven where one has dropped out, to their mean:
ours is all that the collector does from then on, with the clients' small answers; Flower's is the
arithmetic of its workflow, without its messages and strategy. The aggregator gets one client's
vector in place of all: that costs the same. *Unmasked* is the vector in fixed point alone: written,
added up, read.

First both play a small attempt as a whole, and must come to the plain mean.
"""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedlora.errors import RunError
from fedlora.privacy.secure_aggregation.fixed_point import FixedPoint
from simulations.benchmarks import secagg_plus
from simulations.benchmarks.measure import Bar, compare, interleaved, once, report
from simulations.benchmarks.replies import adapter_spec, increment
from simulations.benchmarks.secure_attempt import Attempt

CLIENTS = 8
LIMITS = {
    "client / SecAgg+": 0.7,
    "aggregator / SecAgg+": 0.7,
    "aggregator, one dropped / SecAgg+": 0.7,
    "bytes / unmasked": 1.1,
}
SMALL = 10_000
"""Values of a client in the attempt that is played as a whole."""
EXAMPLES = 8
_FIXED = FixedPoint(clients=CLIENTS, clip_norm=100.0, weights_up_to=1000)
_PEER_ERROR = 1e-3
"""Of Flower's mean at most: its steps are 16 / 2²², of values that it multiplies by 8 / 1000."""


def run(n: int) -> None:
    """Check a small attempt, time the parts of a large one, and print the result."""
    require_the_mean(SMALL)
    report("secure_sum", measured(increment(adapter_spec(), seed=0).values, n=n), LIMITS)


def measured(values: Tensor, *, n: int) -> list[Bar]:
    """Return times and bytes of an attempt in which a client has these values, ``(d,)``."""
    size, flower = len(values) + 1, secagg_plus.Attempt(CLIENTS)
    parameters = secagg_plus.parameters_of(values)
    payload, parts = _written(values), flower.masked(parameters, num_examples=EXAMPLES)
    works: dict[str, Callable[[], object]] = {
        "client": partial(_masked, _attempts(size, n), values),
        "client, SecAgg+": lambda: flower.masked(parameters, num_examples=EXAMPLES),
        "client, unmasked": lambda: _written(values),
        "aggregator, unmasked": lambda: _read(_added([payload] * CLIENTS)),
    }
    for ours, alive in (("aggregator", CLIENTS), ("aggregator, one dropped", CLIENTS - 1)):
        attempts = [*_attempts(size, n)]
        for attempt in attempts:
            _mask_nothing(attempt, clients=range(alive))
        works[ours] = partial(_unmasked, iter(attempts), [payload] * alive)
        works[f"{ours}, SecAgg+"] = partial(flower.mean, [parts] * alive)
    seconds = interleaved({name: _silent(work) for name, work in works.items()}, n=n)
    pairs = [
        *((ours, "SecAgg+") for ours in ("client", "aggregator", "aggregator, one dropped")),
        *((ours, "unmasked") for ours in ("client", "aggregator")),
    ]
    bars = [
        compare(name, seconds, ours=ours, peer=f"{ours}, {peer}", at_most=LIMITS.get(name))
        for ours, peer in pairs
        for name in [f"{ours} / {peer}"]
    ]
    sizes = {"unmasked": len(payload), "SecAgg+": sum(map(len, parts))}
    return [*bars, *_bytes(values, sizes)]


def _bytes(values: Tensor, sizes: dict[str, int]) -> list[Bar]:
    """Compare the bytes of a masked vector, and print how many do not depend on its length."""
    [attempt] = _attempts(len(values) + 1, 0)
    masked = attempt.masked(_FIXED.encode(values, weight=EXAMPLES))
    _mask_nothing(attempt, clients=range(1, CLIENTS))
    attempt.total([masked] * CLIENTS)
    sent, received = (
        sum(message.ByteSize() for message in messages)
        for messages in (attempt.said, attempt.heard)
    )
    print(
        f"Beside its vector of {len(masked) / 1e6:.1f} MB a client sends {sent:,} bytes and "
        f"receives {received:,}, whatever the vector's length.\n"
    )
    return [
        once(name, ours=len(masked) / 1e6, peer=size / 1e6, unit="MB", at_most=LIMITS.get(name))
        for peer, size in sizes.items()
        for name in [f"bytes / {peer}"]
    ]


def require_the_mean(size: int) -> None:
    """Do nothing if both come to the plain mean of clients that differ, one dropped out or none.

    Raises:
        RunError: one of them does not.
    """
    generator = torch.Generator().manual_seed(0)
    vectors = [torch.randn(size, generator=generator) * 0.1 for _ in range(CLIENTS)]
    for left in (vectors, vectors[:-1]):
        [attempt], flower = _attempts(size + 1, 0), secagg_plus.Attempt(CLIENTS)
        payloads, parts = [], []
        for client, values in enumerate(left):
            vector = _FIXED.encode(values, weight=EXAMPLES)
            payloads.append(attempt.masked(vector, client=client))
            parameters = secagg_plus.parameters_of(values)
            parts.append(flower.masked(parameters, num_examples=EXAMPLES, client=client))
        ours, weight = _FIXED.decode(attempt.total(payloads))
        expected = torch.stack(left).mean(dim=0)
        for mean, error in (
            (ours, _FIXED.error_bound(weight) + 1e-9),  # and what float32 rounds
            (flower.mean(parts), _PEER_ERROR),
        ):
            if not (mean - expected).abs().max() <= error:
                raise RunError(f"A secure sum of {len(left)} of {CLIENTS} clients is not the sum.")


def _attempts(size: int, n: int) -> Iterator[Attempt]:
    """Return attempts that are ready for the vectors: one for each of ``n`` runs and a warm-up."""
    return iter([Attempt.ready(CLIENTS, size=size) for _ in range(n + 1)])


def _mask_nothing(attempt: Attempt, *, clients: range) -> None:
    """Take clients past the stage whose vectors others stand in for."""
    for client in clients:
        attempt.masked(np.empty(0, np.uint32), client=client)


def _written(values: Tensor) -> bytes:
    return _FIXED.encode(values, weight=EXAMPLES).tobytes()


def _masked(attempts: Iterator[Attempt], values: Tensor) -> bytes:
    return next(attempts).masked(_FIXED.encode(values, weight=EXAMPLES))


def _unmasked(attempts: Iterator[Attempt], payloads: list[bytes]) -> Tensor:
    return _read(next(attempts).total(payloads))


def _added(payloads: list[bytes]) -> NDArray[np.uint32]:
    total = np.frombuffer(payloads[0], "<u4").astype(np.uint32)
    for payload in payloads[1:]:
        np.add(total, np.frombuffer(payload, "<u4"), out=total)
    return total


def _read(total: NDArray[np.uint32]) -> Tensor:
    total[-1] = CLIENTS * EXAMPLES  # of vectors that do not belong together it can be anything
    return _FIXED.decode(total)[0]


def _silent(work: Callable[[], object]) -> Callable[[], None]:
    def silently() -> None:
        work()

    return silently
