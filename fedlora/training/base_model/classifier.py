"""The head of a sequence classifier: what a base model has not learned yet, or is to learn anew."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from fedlora.adapter import AdapterSpec
from fedlora.errors import BaseModelError
from fedlora.peft_config import SAVED_WHOLE
from fedlora.tensors import TensorSpec
from fedlora.training.base_model.network import auto_class, configuration, loading, quietly


def head_tensors(folder: Path, labels: Sequence[str]) -> tuple[TensorSpec, ...]:
    """Return the head of a classifier of ``labels`` over a base model; its weights are not loaded.

    It has the parameters that transformers would draw at random, because the base's files lack them
    or have them for other labels, and those of the modules that PEFT always saves whole.

    Raises:
        BaseModelError: no sequence classifier that transformers knows, an incomplete base, or a
            head of other than linear modules.
    """
    auto = auto_class(labels)
    with quietly(), loading(folder, auto), torch.random.fork_rng(devices=[]):
        loaded: Any = auto.from_pretrained(
            folder,
            config=configuration(folder, labels),
            device_map="meta",
            ignore_mismatched_sizes=True,  # a head of other labels
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    skeleton: PreTrainedModel
    skeleton, report = loaded
    fresh = {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}
    _require_trunk(folder, skeleton, fresh)
    saved = [f"{path}." for path, _ in skeleton.named_modules() if path.endswith(SAVED_WHOLE)]
    head = {
        path: parameter
        for path, parameter in skeleton.named_parameters()
        if path in fresh or path.startswith(tuple(saved))
    }
    for path in head:
        owner = skeleton.get_submodule(path.rpartition(".")[0])
        if type(owner) is not nn.Linear:
            raise BaseModelError(
                f"{folder}: the head of {type(skeleton).__name__} has {path} of a "
                f"{type(owner).__name__}; only linear modules can be trained whole. Choose another "
                "base model."
            )
    return tuple(
        TensorSpec(module=path, factor="head", shape=tuple(parameter.shape))
        for path, parameter in head.items()
    )


def head_modules(spec: AdapterSpec) -> list[str]:
    """Return the paths of the modules whose parameters are heads."""
    return list(dict.fromkeys(head.owner for head in spec.heads))


def make_trainable(network: PreTrainedModel, heads: Collection[TensorSpec]) -> None:
    """Let the heads be trained, in float32; all else stays as it is."""
    parameters = dict(network.named_parameters())
    for head in heads:
        parameter = parameters[head.name]
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)  # noqa: FBT003 - torch's own signature


def prepare_to_pool(network: PreTrainedModel, *, pad_token_id: int) -> None:
    """Let a decoder take the last token that is no padding for the text, and keep no cache."""
    config = network.config.get_text_config()
    config.pad_token_id, config.use_cache = pad_token_id, False


def _require_trunk(folder: Path, skeleton: PreTrainedModel, fresh: Collection[str]) -> None:
    """Refuse files that lack what no classification teaches; a pooler is part of the head."""
    trunk = f"{skeleton.base_model_prefix}."
    missing = sorted(name for name in fresh if name.startswith(trunk) and "pooler" not in name)
    if missing:
        raise BaseModelError(
            f"{folder}: the weights lack {len(missing)} tensors, the first being {missing[0]}. "
            "Get the complete model again."
        )
