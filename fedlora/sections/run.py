"""The keys at the top of a recipe that name the run."""

from typing import Annotated

from pydantic import Field

from fedlora.sections.section import Name, Section


class RunKeys(Section):
    """The run itself."""

    name: Name = "run"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
