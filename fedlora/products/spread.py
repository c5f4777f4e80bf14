"""Work on many modules, spread over threads that use their memory again."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

import torch
from torch import Tensor


class Job(Protocol):
    """What is to be done for one module."""

    @property
    def size(self) -> int:
        """What the job's cost is proportional to."""


AnyJob = TypeVar("AnyJob", bound=Job)
Result = TypeVar("Result")


class Workspace:
    """Float64 matrices that a thread uses again for each of its jobs."""

    def __init__(self) -> None:
        self._flat: dict[str, Tensor] = {}

    def matrix(self, name: str, rows: int, columns: int) -> Tensor:
        """Return a ``(rows, columns)`` of any values, valid until the next of that name."""
        size = rows * columns
        if name not in self._flat or self._flat[name].numel() < size:
            self._flat[name] = torch.empty(size, dtype=torch.float64)
        return self._flat[name][:size].view(rows, columns)


class _Kept(threading.local):
    """The calling thread's own workspace: fresh memory costs a small job a third of its time."""

    def __init__(self) -> None:
        self.workspace = Workspace()


_kept = _Kept()


def spread(work: Callable[[AnyJob, Workspace], Result], jobs: Sequence[AnyJob]) -> list[Result]:
    """Return the result of each job, done by as many threads as torch has, large jobs first.

    Each matrix product then has one thread: that scales better than to split small matrices. Where
    there are fewer jobs than threads, they come one after the other and have all threads.

    Guarantees:
        Which thread does a job makes no difference to its result.
    """
    threads = torch.get_num_threads()
    if threads == 1 or len(jobs) < threads:
        return [work(job, _kept.workspace) for job in jobs]
    queue = iter(sorted(range(len(jobs)), key=lambda index: -jobs[index].size))
    results: dict[int, Result] = {}
    ready = threading.Barrier(threads + 1)

    def take_jobs() -> None:
        torch.get_num_threads()  # or torch sets it when it is first needed, and undoes what follows
        torch.set_num_threads(1)
        ready.wait()
        workspace = Workspace()
        for index in queue:
            results[index] = work(jobs[index], workspace)

    with ThreadPoolExecutor(threads) as pool:
        workers = [pool.submit(take_jobs) for _ in range(threads)]
        ready.wait()
        torch.set_num_threads(threads)  # set in one thread, it is what new threads begin with
        for worker in workers:
            worker.result()
    return [results[index] for index in range(len(jobs))]
