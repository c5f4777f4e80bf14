"""A base whose linear modules are held in fewer bits, as bitsandbytes does it."""

from collections.abc import Sequence

import torch
from bitsandbytes.nn.modules import Linear4bit
from torch import nn
from transformers import BitsAndBytesConfig

from fedlora.sections import Quantization


def quantizer(
    kind: Quantization, dtype: torch.dtype, *, whole: Sequence[str] = ()
) -> BitsAndBytesConfig | None:
    """Return how transformers is told to hold the base, computing in ``dtype``.

    4 bits are NF4 with double quantisation (Dettmers et al. 2023, arXiv:2305.14314, section 3), 8
    bits those of Dettmers et al. 2022, arXiv:2208.07339, section 3.

    Args:
        kind: of the base's linear modules.
        dtype: of the computation.
        whole: paths of modules that stay as they are, as an output head does.
    """
    kept = list(whole) or None
    if kind == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=kept,
        )
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    return None


def never_repack(network: nn.Module) -> None:
    """Keep bitsandbytes from repacking NF4 weights in the first evaluation.

    It would do so in place on processors with AVX512-BF16, and all later gradients would be wrong
    while the loss looks normal (bitsandbytes issue 2078).
    """
    for module in network.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
