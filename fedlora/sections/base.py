"""The keys at the top of a recipe that say which base model, and how it is held."""

from typing import Annotated, Literal

from pydantic import Field

from fedlora.sections.section import Section

EMBEDDED = "embedded"
"""Base model that means the small model inside the package."""


class BaseKeys(Section):
    """The base model."""

    base_model: Annotated[str, Field(min_length=1)] = EMBEDDED
    """``embedded``, a local folder, or a hub id such as ``meta-llama/Llama-3.2-1B``."""
    base_model_revision: str | None = None
    gradient_checkpointing: bool = False
    bf16: Literal["auto"] | bool = "auto"
    """Compute in bfloat16 over float32 adapters; ``auto``: where the processor has it."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """``auto``: CUDA before MPS before the CPU."""
