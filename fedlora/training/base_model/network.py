"""Networks and tokenizers as transformers builds them."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any, Literal

import torch
from bitsandbytes.nn.modules import Linear4bit
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from fedlora.errors import BaseModelError
from fedlora.recipe import Recipe
from fedlora.tensors import TensorSpec

_LONGEST_EAGER = 256
"""Up to this length, plain matrix products train faster on CPUs than torch's fused attention: by
a tenth at 128 tokens, not at all from 512 (a Llama of 30 M parameters, bfloat16)."""

_KINDS = {
    AutoModelForCausalLM: "a causal language model",
    AutoModelForSequenceClassification: "a sequence classifier",
    AutoTokenizer: "a tokenizer",
}
_LOADING_ERRORS = (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError)


def compute(recipe: Recipe) -> tuple[torch.device, torch.dtype]:
    """Return where and in which dtype the recipe computes on this machine.

    Raises:
        BaseModelError: CUDA was asked for and is not there.
    """
    cuda = torch.cuda.is_available()
    if recipe.device == "cuda" and not cuda:
        raise BaseModelError(
            "device: cuda was asked for, but torch finds no CUDA device. "
            "Set device: cpu, or install a driver and a CUDA build of torch."
        )
    if recipe.device == "cpu" or not cuda:
        device = torch.device("cpu")
        # torch has no public query; every processor with AMX has AVX512-BF16 too
        fast = torch.cpu._is_avx512_bf16_supported()  # noqa: SLF001 - see above
    else:
        device = torch.device("cuda", torch.cuda.current_device())
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    in_bf16 = fast if recipe.bf16 == "auto" else recipe.bf16
    return device, torch.bfloat16 if in_bf16 else torch.float32


def attention(recipe: Recipe, device: torch.device) -> Literal["eager"] | None:
    """Return transformers' name of how to compute attention; ``None`` leaves it the choice.

    Not every architecture has fused attention, but each has a default.
    """
    short = recipe.sequence_len <= _LONGEST_EAGER
    return "eager" if device.type == "cpu" and short else None


def auto_model(labels: Sequence[str] | None) -> tuple[Any, dict[str, Any]]:
    """Return transformers' class of the network, and what it is told beside the folder.

    A sequence classifier's head may be of other labels in the folder: it is replaced anyway.
    """
    if not labels:
        return AutoModelForCausalLM, {}
    names = dict(enumerate(labels))
    ids = {name: index for index, name in names.items()}
    options = {"num_labels": len(names), "id2label": names, "label2id": ids}
    return AutoModelForSequenceClassification, {**options, "ignore_mismatched_sizes": True}


def load_skeleton(folder: Path, labels: Sequence[str] | None = None) -> PreTrainedModel:
    """Return the network on the meta device: shapes without weights.

    Args:
        folder: the base model's.
        labels: of a sequence classifier; without them, it is a causal language model.

    Raises:
        BaseModelError: the configuration is broken, or of no such model that transformers knows.
    """
    auto, options = auto_model(labels)
    options.pop("ignore_mismatched_sizes", None)
    with quietly(), loading(folder, auto), torch.device("meta"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, **options)
        skeleton: PreTrainedModel = auto.from_config(config)
    if not labels and "logits_to_keep" not in signature(skeleton.forward).parameters:
        raise BaseModelError(
            f"{folder}: {type(skeleton).__name__} cannot compute the logits of some places alone "
            "(its forward has no logits_to_keep). Choose another base model."
        )
    return skeleton


def load_network(
    folder: Path,
    recipe: Recipe,
    *,
    device: torch.device,
    dtype: torch.dtype,
    heads: Sequence[TensorSpec] = (),
) -> PreTrainedModel:
    """Return the network with its weights, in NF4 if the recipe says ``qlora``.

    The values of ``heads`` are whatever transformers makes of them, and they are not in NF4.

    Raises:
        BaseModelError: the weights are broken or incomplete.
    """
    auto, options = auto_model(recipe.labels)
    skipped = [head.module.rpartition(".")[0] for head in heads]
    with quietly(), loading(folder, auto), torch.random.fork_rng(devices=[]):
        loaded: Any = auto.from_pretrained(
            folder,
            dtype=dtype,
            device_map={"": device},
            attn_implementation=attention(recipe, device),
            quantization_config=_nf4(dtype, skipped) if recipe.adapter == "qlora" else None,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    network: PreTrainedModel
    network, report = loaded
    if missing := sorted(set(report["missing_keys"]) - {head.name for head in heads}):
        raise BaseModelError(
            f"{folder}: the weights lack {len(missing)} tensors, the first being {missing[0]}. "
            "Get the complete model again."
        )
    _never_repack(network)
    return network


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer with its chat template, if it has one.

    Raises:
        BaseModelError: there is none that transformers can read.
    """
    with quietly(), loading(folder, AutoTokenizer):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False
        )
    return tokenizer


@contextmanager
def quietly() -> Iterator[None]:
    """Keep transformers from printing progress bars and warnings inside the block.

    Among them are deprecations that PEFT meets in transformers, about which a user can do nothing.
    """
    logger = getLogger("transformers")
    level, bars = logger.level, transformers_logging.is_progress_bar_enabled()
    logger.setLevel(ERROR)
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.setLevel(level)
        if bars:
            transformers_logging.enable_progress_bar()


def _nf4(dtype: torch.dtype, skipped: Sequence[str]) -> BitsAndBytesConfig:
    """Return the quantisation of Dettmers et al. 2023, arXiv:2305.14314, section 3.

    Args:
        dtype: of the computation.
        skipped: modules that stay as they are, beside the output head.
    """
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=list(skipped) or None,
    )


def _never_repack(network: PreTrainedModel) -> None:
    """Keep bitsandbytes from repacking NF4 weights in the first evaluation.

    It would do so in place on processors with AVX512-BF16, and all later gradients would be wrong
    while the loss looks normal (bitsandbytes issue 2078).
    """
    for module in network.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


@contextmanager
def loading(folder: Path, auto: Any) -> Iterator[None]:  # noqa: ANN401 - one of transformers' classes
    """Turn what transformers raises about a folder into an error that helps."""
    try:
        yield
    except _LOADING_ERRORS as error:
        reason = str(error).strip().partition("\n")[0]
        raise BaseModelError(
            f"{folder}: cannot be loaded as {_KINDS[auto]} ({type(error).__name__}: {reason}). Get "
            "the complete model again, or choose one that this version of transformers knows."
        ) from error
