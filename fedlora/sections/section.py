"""What all sections of a recipe are made of."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

NAME = "[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"
"""Regular expression of the name of a run or a site; it also names files and folders."""


class Section(BaseModel):
    """What all sections have in common: frozen, strict, unknown keys refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True
    )


Name = Annotated[str, Field(pattern=f"^{NAME}$")]
Count = Annotated[int, Field(ge=1)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
"""SHA-256 in hexadecimal."""
Strings = Annotated[tuple[str, ...], Field(strict=False)]
