"""The keys at the top of a recipe that say what the adapter is, and on what kind of base."""

import math
import re
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from fedlora.sections.refused import KEYS, KINDS
from fedlora.sections.section import Count, Section

Quantization = Literal["none", "int8", "nf4"]
"""How the base's linear modules are held: as floating-point numbers, in 8 bits or in 4."""


class LoraKeys(Section):
    """The adapter."""

    REFUSED: ClassVar[Mapping[str, str]] = KEYS
    """Keys that are known from elsewhere, and why they are none here."""

    adapter: Literal["lora", "qlora"] = "lora"
    """``qlora``: the base in 4-bit NF4."""
    load_in_8bit: bool = False
    """With ``lora``: the base in 8 bits."""
    lora_r: Count = 8
    lora_alpha: Annotated[float, Field(gt=0)] = 16
    peft_use_rslora: bool = False
    """Scale by ``lora_alpha / √lora_r`` (Kalajdzievski 2023, arXiv:2312.03732)."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0
    lora_target_modules: str | Annotated[tuple[str, ...], Field(strict=False, min_length=1)] = (
        "all-linear"
    )
    """``all-linear``, names, or a regular expression that whole paths of modules fit."""

    @field_validator("adapter", mode="before")
    @classmethod
    def _kind_is_lora(cls, value: object) -> object:
        if isinstance(value, str) and (reason := KINDS.get(value.lower())):
            raise ValueError(
                f"no adapter of the kind {value} is federated: {reason}. Take lora or qlora"
            )
        return value

    @field_validator("lora_target_modules")
    @classmethod
    def _expression_is_one(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if isinstance(value, str):
            try:
                re.compile(value)
            except (re.error, OverflowError, RecursionError) as error:
                raise ValueError(
                    f"{value!r:.80} is no regular expression ({error}); names are written as a "
                    "list, such as [q_proj, v_proj]"
                ) from None
        return value

    @model_validator(mode="after")
    def _quantized_once(self) -> Self:
        if self.load_in_8bit and self.adapter == "qlora":
            raise ValueError(
                "adapter: qlora holds the base in 4 bits, load_in_8bit in 8: take adapter: lora "
                "for 8 bits, or remove load_in_8bit"
            )
        return self

    @property
    def quantization(self) -> Quantization:
        """How the base's linear modules are held."""
        return "nf4" if self.adapter == "qlora" else "int8" if self.load_in_8bit else "none"

    @property
    def alpha(self) -> float:
        """What plain LoRA divides by ``lora_r`` for the same scaling: rsLoRA's times √r."""
        return self.lora_alpha * (math.sqrt(self.lora_r) if self.peft_use_rslora else 1)

    @property
    def scaling(self) -> float:
        """What B·A is multiplied by, dimensionless, at every site, whatever rank it trains."""
        return self.alpha / self.lora_r
