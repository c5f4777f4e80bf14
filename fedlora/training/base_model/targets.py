"""Which modules of a network carry LoRA."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from torch import nn
from transformers import PreTrainedModel

from fedlora.adapter import TensorSpec
from fedlora.errors import BaseModelError


def linear_modules(network: PreTrainedModel) -> dict[str, nn.Linear]:
    """Return the linear modules by path, in the network's order, without the output head."""
    head = network.get_output_embeddings()
    return {
        path: module
        for path, module in network.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }


def separate_linears(network: PreTrainedModel) -> dict[str, nn.Linear]:
    """Return the linear modules by path whose weights belong to no other module too.

    The output head is among them unless it shares the embedding's weights.
    """
    owners = Counter(
        id(parameter)
        for module in network.modules()
        for parameter in module.parameters(recurse=False)
    )
    return {
        path: module
        for path, module in network.named_modules()
        if isinstance(module, nn.Linear) and owners[id(module.weight)] == 1
    }


def select(
    linears: Mapping[str, nn.Linear], wanted: Literal["all-linear"] | Sequence[str]
) -> dict[str, nn.Linear]:
    """Return the modules that are meant, in the network's order.

    Args:
        linears: all that could carry LoRA, by path.
        wanted: ``all-linear``, or paths and ends of paths such as ``q_proj`` or ``mlp.up_proj``.

    Raises:
        BaseModelError: a name fits no linear module, or there is none at all.
    """
    names = list(linears) if wanted == "all-linear" else list(wanted)
    unknown = [name for name in names if not any(_fits(path, name) for path in linears)]
    if unknown or not linears:
        raise BaseModelError(
            f"lora_target_modules: {', '.join(unknown) or 'all-linear'} fits no linear module of "
            f"the base model. It has: {', '.join(_leaves(linears)) or 'none'}."
        )
    return {p: m for p, m in linears.items() if any(_fits(p, name) for name in names)}


def shortest_names(network: nn.Module, selected: Iterable[str]) -> tuple[str, ...]:
    """Return the names by which PEFT finds the selected modules, and no other, again.

    Their sorted last parts (``q_proj``) where these are unambiguous, else their sorted paths.
    """
    paths = set(selected)
    leaves = _leaves(paths)
    fitting = {p for p, _ in network.named_modules() if p.rpartition(".")[2] in leaves}
    return tuple(leaves if fitting == paths else sorted(paths))


def factor_shapes(selected: Mapping[str, nn.Linear], *, rank: int) -> tuple[TensorSpec, ...]:
    """Return the factors of the selected modules, A before B."""
    tensors: list[TensorSpec] = []
    for path, linear in selected.items():
        tensors += (
            TensorSpec(module=path, factor="A", shape=(rank, linear.in_features)),
            TensorSpec(module=path, factor="B", shape=(linear.out_features, rank)),
        )
    return tuple(tensors)


def _fits(path: str, name: str) -> bool:
    return path == name or path.endswith(f".{name}")


def _leaves(paths: Iterable[str]) -> list[str]:
    return sorted({path.rpartition(".")[2] for path in paths})
