"""Networks and tokenizers as transformers builds them."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from fedlora.errors import BaseModelError
from fedlora.recipe import Recipe
from fedlora.training.base_model.placement import Placement
from fedlora.training.base_model.quantization import never_repack, quantizer

_LONGEST_EAGER = 256
"""Up to this length, plain matrix products train faster on CPUs than torch's fused attention: by
a tenth at 128 tokens, not at all from 512 (a Llama of 30 M parameters, bfloat16)."""

_NOISE = re.compile(r"drop|jitter")
"""Keys of a configuration such as ``attention_dropout``, ``resid_pdrop``, ``layerdrop`` and
``router_jitter_noise``."""

_LOADING_ERRORS = (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError)


def attention(recipe: Recipe, device: torch.device) -> Literal["eager"] | None:
    """Return transformers' name of how to compute attention; ``None`` leaves it the choice.

    Not every architecture has fused attention, but each has a default.
    """
    short = recipe.sequence_len <= _LONGEST_EAGER
    return "eager" if device.type == "cpu" and short else None


def load_skeleton(folder: Path) -> PreTrainedModel:
    """Return the network on the meta device: shapes without weights.

    Raises:
        BaseModelError: the configuration is broken, of no causal language model that transformers
            knows, or of weights that are quantised already.
    """
    with quietly(), _loading(folder), torch.device("meta"):
        skeleton: PreTrainedModel = AutoModelForCausalLM.from_config(_configuration(folder))
    return skeleton


def load_network(folder: Path, recipe: Recipe, placement: Placement) -> PreTrainedModel:
    """Return the network with its weights, held as the recipe says.

    Raises:
        BaseModelError: the weights are broken or incomplete.
    """
    with quietly(), _loading(folder):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=_configuration(folder),
            dtype=placement.dtype,
            device_map=placement.device_map,
            attn_implementation=attention(recipe, placement.device),
            quantization_config=quantizer(recipe.quantization, placement.dtype),
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    network: PreTrainedModel
    network, report = loaded
    if missing := sorted(report["missing_keys"]):
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
    with quietly(), _loading(folder):
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


def _configuration(folder: Path) -> PretrainedConfig:
    """Return a base model's configuration, without dropout and other noise in training.

    What is drawn for one example would depend on those before it in the batch, which privacy
    forbids; the adapter has a dropout of its own, ``lora_dropout``.

    Raises:
        BaseModelError: the weights are quantised already.
    """
    config: PretrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
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
def _loading(folder: Path) -> Iterator[None]:
    """Turn what transformers raises about a folder into an error that helps."""
    try:
        yield
    except _LOADING_ERRORS as error:
        reason = str(error).strip().partition("\n")[0]
        if "trust_remote_code" in str(error):
            reason = "it needs code of its own, which is never run here"
        raise BaseModelError(
            f"{folder}: cannot be loaded as a causal language model "
            f"({type(error).__name__}: {reason}). Get the complete model again, or choose one "
            "that this version of transformers knows."
        ) from error
