"""Networks and tokenizers as transformers builds them."""

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from fedlora.errors import BaseModelError
from fedlora.recipe import Recipe
from fedlora.tensors import TensorSpec
from fedlora.training.base_model.placement import Placement
from fedlora.training.base_model.quantization import never_repack, quantizer

_LONGEST_EAGER = 256
"""Up to this length, plain matrix products train faster on CPUs than torch's fused attention: by
a tenth at 128 tokens, not at all from 512 (a Llama of 30 M parameters, bfloat16)."""

_NOISE = re.compile(r"drop|jitter")
"""Keys of a configuration such as ``attention_dropout``, ``resid_pdrop``, ``layerdrop`` and
``router_jitter_noise``."""

_KINDS = {
    AutoModelForCausalLM: "a causal language model",
    AutoModelForSequenceClassification: "a sequence classifier",
    AutoTokenizer: "a tokenizer",
}
_LOADING_ERRORS = (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError)


def attention(recipe: Recipe, device: torch.device) -> Literal["eager"] | None:
    """Return transformers' name of how to compute attention; ``None`` leaves it the choice.

    Not every architecture has fused attention, but each has a default.
    """
    short = recipe.sequence_len <= _LONGEST_EAGER
    return "eager" if device.type == "cpu" and short else None


def auto_class(labels: Sequence[str] | None) -> Any:  # noqa: ANN401 - one of transformers' classes
    """Return what transformers makes the network with: of labels, a sequence classifier."""
    return AutoModelForSequenceClassification if labels else AutoModelForCausalLM


def load_skeleton(folder: Path, labels: Sequence[str] | None = None) -> PreTrainedModel:
    """Return the network on the meta device: shapes without weights.

    Args:
        folder: the base model's.
        labels: of a sequence classifier; without them, it is a causal language model.

    Raises:
        BaseModelError: the configuration is broken, of no such model that transformers knows, or of
            weights that are quantised already.
    """
    auto = auto_class(labels)
    with quietly(), loading(folder, auto), torch.device("meta"):
        skeleton: PreTrainedModel = auto.from_config(configuration(folder, labels))
    return skeleton


def load_network(
    folder: Path, recipe: Recipe, placement: Placement, *, heads: Sequence[TensorSpec] = ()
) -> PreTrainedModel:
    """Return the network with its weights, held as the recipe says.

    The values of ``heads`` are whatever transformers makes of them, and they are not quantised.

    Raises:
        BaseModelError: the weights are broken or incomplete.
    """
    auto, whole = auto_class(recipe.labels), [head.owner for head in heads]
    with quietly(), loading(folder, auto), torch.random.fork_rng(devices=[]):
        loaded: Any = auto.from_pretrained(
            folder,
            config=configuration(folder, recipe.labels),
            dtype=placement.dtype,
            device_map=placement.device_map,
            attn_implementation=attention(recipe, placement.device),
            quantization_config=quantizer(recipe.quantization, placement.dtype, whole=whole),
            ignore_mismatched_sizes=bool(heads),  # these are replaced
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    network: PreTrainedModel
    network, report = loaded
    if missing := sorted(set(report["missing_keys"]) - {head.name for head in heads}):
        raise BaseModelError(
            f"{folder}: the weights lack {len(missing)} tensors, the first being {missing[0]}. "
            "Get the complete model again."
        )
    never_repack(network)
    return network


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer with its chat template, if it has one.

    Raises:
        BaseModelError: there is none that transformers can read, or one that does not tell where
            in a text its tokens are.
    """
    with quietly(), loading(folder, AutoTokenizer):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False
        )
    if not tokenizer.is_fast:
        raise BaseModelError(
            f"{folder}: {type(tokenizer).__name__} is no fast tokenizer: it does not tell where in "
            "a text its tokens are, so that answers cannot be told from prompts. Choose a base "
            "model with a tokenizer.json."
        )
    return tokenizer


@contextmanager
def quietly() -> Iterator[None]:
    """Keep transformers from printing progress bars and warnings inside the block.

    Among them are deprecations that PEFT meets in transformers, about which a user can do nothing,
    and PEFT's own warnings about modules: which of them it adapts is checked after it.
    """
    logger = getLogger("transformers")
    level, bars = logger.level, transformers_logging.is_progress_bar_enabled()
    logger.setLevel(ERROR)
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.filterwarnings("ignore", module=r"peft\.")
            yield
    finally:
        logger.setLevel(level)
        if bars:
            transformers_logging.enable_progress_bar()


def configuration(folder: Path, labels: Sequence[str] | None) -> PretrainedConfig:
    """Return a base model's configuration, without dropout and other noise in training.

    What is drawn for one example would depend on those before it in the batch, which privacy
    forbids; the adapter has a dropout of its own, ``lora_dropout``.

    Args:
        folder: the base model's.
        labels: of a sequence classifier, whatever those in the folder are.

    Raises:
        BaseModelError: the weights are quantised already.
    """
    names = dict(enumerate(labels or ()))
    ids = {name: index for index, name in names.items()}
    classes = {"num_labels": len(names), "id2label": names, "label2id": ids} if labels else {}
    config: PretrainedConfig = AutoConfig.from_pretrained(
        folder, trust_remote_code=False, **classes
    )
    if getattr(config, "quantization_config", None) is not None:
        raise BaseModelError(
            f"{folder}: its weights are quantised already, so that a release could not be merged "
            "into what it was trained on. Take the same model in full precision; adapter: qlora "
            "or load_in_8bit quantises it while it is loaded."
        )
    _without_noise(config)
    return config


def _without_noise(config: PretrainedConfig) -> None:
    for key, value in list(vars(config).items()):
        if isinstance(value, PretrainedConfig):
            _without_noise(value)
        elif _NOISE.search(key) and isinstance(value, float):
            setattr(config, key, 0.0)


@contextmanager
def loading(folder: Path, auto: Any) -> Iterator[None]:  # noqa: ANN401 - one of transformers' classes
    """Turn what transformers raises about a folder into an error that helps."""
    try:
        yield
    except _LOADING_ERRORS as error:
        reason = str(error).strip().partition("\n")[0]
        if "trust_remote_code" in str(error):
            reason = "it needs code of its own, which is never run here"
        raise BaseModelError(
            f"{folder}: cannot be loaded as {_KINDS[auto]} ({type(error).__name__}: {reason}). Get "
            "the complete model again, or choose one that this version of transformers knows."
        ) from error
