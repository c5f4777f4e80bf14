"""The keys at the top of a recipe that say what the adapter is."""

from typing import Annotated, Literal

from pydantic import Field

from fedlora.sections.section import Count, Section


class LoraKeys(Section):
    """The adapter."""

    adapter: Literal["lora", "qlora"] = "lora"
    lora_r: Count = 8
    lora_alpha: Annotated[float, Field(gt=0)] = 16
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0
    lora_target_modules: (
        Literal["all-linear"] | Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
    ) = "all-linear"
