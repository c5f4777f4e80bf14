"""Peak memory of a piece of work, above what was there before it, in a process of its own."""

import os
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import torch

_RETURN_ALL_ABOVE = "MALLOC_MMAP_THRESHOLD_"
"""The GNU C library's variable for the bytes above which freed memory is returned."""

Answer = TypeVar("Answer")


def elsewhere(work: Callable[..., Answer], *arguments: object) -> Answer:
    """Return what a function of a module answers in a new process."""
    os.environ[_RETURN_ALL_ABOVE] = str(2**16)
    try:
        with get_context("spawn").Pool(1) as pool:
            return pool.apply(work, arguments)
    finally:
        del os.environ[_RETURN_ALL_ABOVE]


def peak_of(work: Callable[[], object]) -> float:
    """Return the peak of a piece of work above what is there already, in MB.

    Of the graphics card's memory where there is one, or else of the process's (Linux).
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    before = _status("VmRSS")
    work()
    return (_status("VmHWM") - before) / 1e6


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    [line] = [line for line in lines if line.startswith(key)]
    return int(line.split()[1]) * 1024
