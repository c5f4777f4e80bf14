"""The keys at the top of a recipe that say what is learned from."""

from typing import Annotated

from pydantic import Field

from fedlora.sections.datasets import Dataset
from fedlora.sections.section import Section


class DataKeys(Section):
    """The rows, and what of them is learned."""

    sequence_len: Annotated[int, Field(ge=8)] = 512
    """Longest example in tokens; a longer one keeps its end-most supervised part."""
    train_on_inputs: bool = False
    """Learn the prompts too, not the answers alone."""
    val_set_size: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of each site's rows that is held out for evaluation."""
    datasets: Annotated[tuple[Dataset, ...], Field(strict=False, min_length=1)]
