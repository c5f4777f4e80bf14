"""The keys at the top of a recipe that name the run."""

from typing import Annotated

from pydantic import Field

from fedlora.sections.section import Name, Section


class RunKeys(Section):
    """The run itself."""

    name: Name = "run"
    init_from: Annotated[str, Field(min_length=1)] | None = None
    """Folder of a release, or of another adapter in PEFT's format, that training begins with."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
