"""The keys at the top of a recipe that say what is learned from."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedlora.sections.datasets import Dataset, require_mixture
from fedlora.sections.section import Section

Excess = Literal["truncate", "drop", "raise"]


class DataKeys(Section):
    """The rows, and what of them is learned."""

    sequence_len: Annotated[int, Field(ge=8)] = 512
    """Longest example in tokens."""
    excess_length_strategy: Excess = "truncate"
    """What becomes of a longer one: it keeps its end-most supervised part, it is left out, or
    nothing is trained."""
    train_on_inputs: bool = False
    """Learn the prompts too, not the answers alone."""
    val_set_size: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of each site's rows that is held out for evaluation."""
    datasets: Annotated[tuple[Dataset, ...], Field(strict=False, min_length=1)]

    @model_validator(mode="after")
    def _mixtures_are_whole(self) -> Self:
        for site in {dataset.site for dataset in self.datasets}:
            require_mixture([dataset for dataset in self.datasets if dataset.site == site])
        return self
