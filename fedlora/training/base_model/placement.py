"""Where a recipe computes on this machine, in which dtype, and how much memory is free there."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from fedlora.errors import BaseModelError
from fedlora.recipe import Recipe

_MEMORY, _CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
"""Where Linux says how much memory there is, and how much of it a container may have."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where and how a base model is held."""

    device: torch.device
    """Where tokens go in and logits come out."""
    dtype: torch.dtype
    """Of the computation, and of weights that are not quantised."""
    cards: int = 1
    """CUDA devices that hold a part of the layers each."""
    room: int
    """Bytes that are free there."""

    @property
    def device_map(self) -> str | dict[str, torch.device]:
        """The placement as transformers takes it."""
        return "balanced" if self.cards > 1 else {"": self.device}

    def __str__(self) -> str:
        """Return the device's name, and on how many of them the base lies."""
        return f"{self.cards} {self.device.type} devices" if self.cards > 1 else str(self.device)


def compute(recipe: Recipe) -> tuple[torch.device, torch.dtype]:
    """Return where and in which dtype the recipe computes on this machine.

    Raises:
        BaseModelError: a device was asked for that is not there, or cannot hold the base as asked.
    """
    device = find_device(recipe.device)
    if device.type == "mps" and recipe.quantization != "none":
        raise BaseModelError(
            "device: on MPS bitsandbytes computes with kernels that it fetches from the hub, or "
            "slowly, and neither was tried. Set adapter: lora without load_in_8bit, or device: cpu."
        )
    in_bf16 = _fast_in_bf16(device) if recipe.bf16 == "auto" else recipe.bf16
    return device, torch.bfloat16 if in_bf16 else torch.float32


def place(device: torch.device, dtype: torch.dtype, *, needed: int) -> Placement:
    """Return how a base is held: by all CUDA devices together, if one alone has no room for it.

    Args:
        device: the one that is to be used.
        dtype: of the computation.
        needed: bytes.
    """
    room, cards = room_on(device), 1
    if device.type == "cuda" and room < needed:
        cards = torch.cuda.device_count()
        room = sum(room_on(torch.device("cuda", number)) for number in range(cards))
    return Placement(device=device, dtype=dtype, cards=cards, room=room)


def find_device(wanted: str) -> torch.device:
    """Return the device of that name; of ``auto``, CUDA's before MPS before the CPU.

    Raises:
        BaseModelError: it is not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(wanted, True):
        raise BaseModelError(
            f"device: {wanted} was asked for, but torch finds no {wanted.upper()} device. "
            f"Set device: cpu, or install a driver and a {wanted.upper()} build of torch."
        )
    found = next((kind for kind in there if there[kind]), "cpu") if wanted == "auto" else wanted
    return (
        torch.device("cuda", torch.cuda.current_device())
        if found == "cuda"
        else torch.device(found)
    )


def device_name(device: torch.device) -> str:
    """Return what a person calls it, such as ``NVIDIA H200`` or ``CPU``."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()


def _fast_in_bf16(device: torch.device) -> bool:
    """Tell whether the device multiplies in bfloat16 itself."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "mps":
        return bool(torch.backends.mps.is_macos_or_newer(14, 0))
    # torch has no public query; every processor with AMX has AVX512-BF16 too
    return bool(torch.cpu._is_avx512_bf16_supported())  # noqa: SLF001 - see above


def room_on(device: torch.device) -> int:
    """Return the bytes of memory that the device has free for this process."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + kept
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return min([_available(), *_left_to_container()])


def _available() -> int:
    """Return the bytes that a new process could have without swapping; all, where none knows."""
    try:
        return int(_numbers(_MEMORY)["MemAvailable:"]) * 1024
    except (OSError, KeyError, ValueError):  # not Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _left_to_container() -> list[int]:
    """Return the bytes that a container's bound leaves, if there is one."""
    try:
        most = int((_CGROUP / "memory.max").read_text(encoding="ascii"))
        return [most - int(_numbers(_CGROUP / "memory.stat")["anon"])]
    except (OSError, KeyError, ValueError):  # no bound, or not cgroup version 2
        return []


def _numbers(path: Path) -> dict[str, str]:
    """Return the second word of each line by the first."""
    lines = path.read_text(encoding="ascii").splitlines()
    return {words[0]: words[1] for words in map(str.split, lines)}
