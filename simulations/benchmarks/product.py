"""The best adapter for a weighted mean of products, against what it could cost.

One module of 4096 by 4096, ten clients of rank 16, against the full dense decomposition. A whole
Llama-7B adapter: ten clients at once, against nothing but the same float64 matrix products on
stacks that lie ready, against reading the clients once, and against the plain mean of the factors;
a stream of clients one by one, with twice the rank retained, likewise, and late clients against
early ones. What streaming costs in accuracy is in ``trained.py``.
"""

import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fedlora.adapter import AdapterSpec, AdapterState
from fedlora.products import combine
from fedlora.products.approximation import gram
from fedlora.products.spread import Workspace, spread
from simulations.benchmarks import trained
from simulations.benchmarks.measure import Bar, compare, interleaved, report
from simulations.benchmarks.replies import adapter_spec

CLIENTS = 10
REPEATS = 10
"""One module is combined so often for each full decomposition."""
EARLY, LATE, SPAN = 6, 96, 9
"""First client of each of the two stretches of a stream, and how many are timed."""
LIMITS = {
    "one module / full SVD": 1 / 800,
    "excess error / norm of the sum": 1e-6,
    "7B, 10 at once / its matrix products": 2.5,
    "7B stream, 100th client / 10th": 1.1,
    trained.NAME: trained.LIMIT,
}
_PARTS = {
    "copy_": "upcast, stack, write",
    "gram": "Gram matrices",
    "mm": "factorisation",
    "linalg_cholesky_ex": "factorisation",
    "_linalg_eigh": "factorisation",
    "outer mm": "results",
}
"""What torch's operations are for."""


def run(n: int) -> None:
    """Measure and print the result. The full decomposition takes long: at most three of them."""
    spec = adapter_spec()
    clients = _trained_clients(spec)
    stream = _stream(clients)  # first, since it also looks at the peak of memory
    bars = [*_one_module(clients, min(n, 3)), *_whole_adapter(clients, n), *stream, trained.bar()]
    print()
    report("product", bars, LIMITS)


def _trained_clients(spec: AdapterSpec) -> list[AdapterState]:
    """Return what clients could have made of a common adapter."""
    common = AdapterState.initial(spec, seed=0)
    generator = torch.Generator().manual_seed(0)
    for tensor, values in common.factors():
        if tensor.factor == "B":
            values.normal_(std=1e-3, generator=generator)
    return [
        AdapterState(
            spec=spec,
            values=torch.empty(spec.size)
            .normal_(std=5e-4, generator=generator)
            .add_(common.values),
        )
        for _ in range(CLIENTS)
    ]


def _one_module(clients: list[AdapterState], n: int) -> list[Bar]:
    spec = replace(clients[0].spec, tensors=clients[0].spec.tensors[:2])
    terms = [(1 / CLIENTS, AdapterState(spec=spec, values=c.values[: spec.size])) for c in clients]
    out = torch.empty(spec.size)
    exact = sum((w * _dense(term) for w, term in terms), start=torch.zeros((), dtype=torch.float64))
    dense = exact.float()

    def ours() -> None:
        for _ in range(REPEATS):
            combine(terms, into=spec, out=out)

    def peer() -> None:
        torch.linalg.svd(dense)

    seconds = interleaved({"ours": ours, "svd": peer}, n=n)
    seconds["ours"] = [each / REPEATS for each in seconds["ours"]]
    name = "one module / full SVD"
    bar = compare(name, seconds, ours="ours", peer="svd", at_most=LIMITS[name])
    combined = combine(terms, into=spec)
    optimum = torch.linalg.svdvals(exact)[spec.rank :].norm()
    excess = float((exact - _dense(combined.state)).norm() - optimum)
    return [bar, _excess(max(0.0, excess), norm=float(exact.norm()))]


def _excess(excess: float, *, norm: float) -> Bar:
    name = "excess error / norm of the sum"
    return Bar(
        name=name,
        ours=excess,
        peer=norm,
        ratio=excess / norm,
        unit="Frobenius norm",
        n=1,
        holds=excess <= LIMITS[name] * norm,
    )


def _dense(state: AdapterState) -> Tensor:
    [(_, down, up)] = state.pairs()
    return state.spec.scaling * up.double() @ down.double()


def _whole_adapter(clients: list[AdapterState], n: int) -> list[Bar]:
    spec = clients[0].spec
    terms = [(1 / CLIENTS, client) for client in clients]
    products = _Products.of_modules(clients[0])
    out, mean = torch.empty(spec.size), torch.empty(spec.size)

    def at_once() -> None:
        combine(terms, into=spec, out=out)

    def streamed() -> None:
        _Stream(clients, folded=CLIENTS)

    def read() -> None:
        for client in clients:
            client.values.sum()

    def average() -> None:
        mean.zero_()
        for client in clients:
            mean.add_(client.values, alpha=1 / CLIENTS)

    def multiply() -> None:
        spread(_Products.multiply, products)

    seconds = interleaved(
        {
            "at once": at_once,
            "streamed": streamed,
            "its matrix products": multiply,
            "reading the bytes once": read,
            "averaging the factors": average,
        },
        n=n,
    )
    print(f"Where the time goes (7B, {CLIENTS} clients at once, one thread):")
    for part, share in _shares(at_once, stacked=CLIENTS * spec.rank).items():
        print(f"  {part:22} {share:4.0%}")
    pairs = (
        ("at once", "its matrix products"),
        ("at once", "reading the bytes once"),
        ("at once", "averaging the factors"),
        ("streamed", "reading the bytes once"),
        ("streamed", "averaging the factors"),
    )
    names = {f"7B, {CLIENTS} {ours} / {peer}": (ours, peer) for ours, peer in pairs}
    return [
        compare(name, seconds, ours=ours, peer=peer, at_most=LIMITS.get(name))
        for name, (ours, peer) in names.items()
    ]


@dataclass(frozen=True, kw_only=True)
class _Products:
    """The float64 matrix products for one module and all clients; the values do not matter."""

    a: Tensor
    b: Tensor

    @classmethod
    def of_modules(cls, client: AdapterState) -> list["_Products"]:
        """Return those of each module; modules of one size share their stacks."""
        stacked = CLIENTS * client.spec.rank
        sizes = {tensor.size // client.spec.rank for tensor in client.spec.tensors}
        stacks = {size: torch.randn(stacked, size, dtype=torch.float64) for size in sizes}
        columns = {size: stack.T.contiguous() for size, stack in stacks.items()}
        return [
            cls(a=stacks[down.shape[1]], b=columns[up.shape[0]]) for _, down, up in client.pairs()
        ]

    @property
    def size(self) -> int:
        return self.a.numel() + self.b.numel()

    def multiply(self, workspace: Workspace) -> None:
        stacked, rank = len(self.a), len(self.a) // CLIENTS
        square, thin = gram(self.a), self.a[:rank, :stacked]
        gram(self.b.T)
        square.T @ square @ square  # Lᵀ G_B L
        square @ thin.T  # L V
        thin @ square  # Wᵀ G_B
        torch.mm(thin, self.a, out=workspace.matrix("right", rank, self.a.shape[1]))
        torch.mm(thin, self.b.T, out=workspace.matrix("left", rank, len(self.b)))


class _Stopwatch(TorchDispatchMode):
    """Counts the seconds of each of torch's operations by what it is for."""

    def __init__(self, stacked: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.stacked = stacked
        self.seconds = dict.fromkeys((*_PARTS.values(), "rest"), 0.0)

    def __torch_dispatch__(  # noqa: PLR0917 - torch's signature
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[Tensor, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        started = time.perf_counter()
        result = func(*args, **(kwargs or {}))
        name = func.__name__.partition(".")[0]
        if name == "mm" and args[0].shape[1] > self.stacked:
            name = "gram"
        elif name == "mm" and args[1].shape[1] > self.stacked:
            name = "outer mm"
        self.seconds[_PARTS.get(name, "rest")] += time.perf_counter() - started
        return result


def _shares(work: Callable[[], None], *, stacked: int) -> Mapping[str, float]:
    """Return which share of the time of torch's operations goes where, in one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the stopwatch is of one thread
    with _Stopwatch(stacked) as stopwatch:
        work()
    torch.set_num_threads(threads)
    total = sum(stopwatch.seconds.values())
    return {part: seconds / total for part, seconds in stopwatch.seconds.items()}


class _Stream:
    """Folds one client after the other into a retained adapter of twice the rank."""

    def __init__(self, clients: list[AdapterState], *, folded: int) -> None:
        spec = clients[0].spec.part(rank=2 * clients[0].spec.rank)
        self._clients = clients
        self._mean = AdapterState(spec=spec, values=torch.zeros(spec.size))
        self._folded = 0
        for _ in range(folded):
            self.fold()

    def fold(self) -> None:
        client = self._clients[self._folded % len(self._clients)]
        self._folded += 1
        part = 1 / self._folded
        terms = [(1 - part, self._mean), (part, client)]
        combine(terms, into=self._mean.spec, out=self._mean.values)


def _stream(clients: list[AdapterState]) -> list[Bar]:
    early, late = _Stream(clients, folded=EARLY - 2), _Stream(clients, folded=LATE - 2)
    before = _peak()
    seconds = interleaved({"early": early.fold, "late": late.fold}, n=SPAN)
    print(f"Streaming {2 * SPAN} clients raised the peak of memory by {_peak() - before:.0f} MB.")
    name = "7B stream, 100th client / 10th"
    return [compare(name, seconds, ours="late", peer="early", at_most=LIMITS[name])]


def _peak() -> float:
    """Return the process's peak memory in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
