"""Where training rows come from, and whose they are."""

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedlora.sections.section import Count, Name, Section, Strings

AT_SITE = "at-site"
"""Dataset path that means what the site's own ``site.yaml`` names."""

STANDARD_LIBRARY = "standard-library"
"""Dataset path that means the documentation of the running interpreter's standard library."""

RowType = Literal[
    "messages", "sharegpt", "prompt-completion", "alpaca", "preference", "text-label", "text"
]
DatasetType = Literal["auto"] | RowType


class Source(Section):
    """Files with rows."""

    path: Annotated[str, Field(min_length=1)]
    """A file (.jsonl, .json, .csv, .parquet, .txt, .md), a folder of such files, a data set's id on
    the Hub such as ``org/name``, or ``standard-library``."""
    type: DatasetType = "auto"
    """Format of the rows; ``auto`` detects it."""
    split: Annotated[str, Field(min_length=1)] | None = None
    """Which split of a folder's files to read, by their names; of a folder by default all files, of
    a data set on the Hub ``train``."""
    name: Annotated[str, Field(min_length=1)] | None = None
    """Subset of a data set on the Hub: the folder that its files stand in."""
    revision: Annotated[str, Field(min_length=1)] | None = None
    """Branch, tag or commit of a data set on the Hub."""
    packages: Strings = ()
    """Which packages of the standard library to read; all when empty."""

    @model_validator(mode="after")
    def _packages_are_of_the_standard_library(self) -> Self:
        if self.packages and self.path != STANDARD_LIBRARY:
            raise ValueError(f"packages can only be named with path: {STANDARD_LIBRARY}")
        return self


class TrainingSource(Source):
    """Files with training rows, one of perhaps several of a site."""

    weight: Annotated[float, Field(gt=0)] | None = None
    """Share of the rows trained on that comes from here, relative to the weights of the site's
    other datasets; by default each counts by its rows."""


class Dataset(TrainingSource):
    """One source of training rows, and whose it is."""

    path: Annotated[str, Field(min_length=1)] = AT_SITE
    site: Name | None = None
    """The site that holds this data; without it the rows are dealt out among all sites."""
    lora_r: Count | None = None
    """Rank that this site trains; by default the recipe's."""
    records: Count | None = None
    """Training records of this site, as it declares them; by default ``privacy.records``."""

    @model_validator(mode="after")
    def _facts_are_of_a_site(self) -> Self:
        for key in ("lora_r", "records"):
            if getattr(self, key) and not self.site:
                raise ValueError(f"{key} is of a site: name the site too")
        if self.path == AT_SITE and not self.site:
            raise ValueError("name a path, or the site whose own the data is")
        return self


def require_mixture(sources: Sequence[TrainingSource]) -> None:
    """Do nothing if all of a site's sources have a weight, or none has.

    Raises:
        ValueError: some have none.
    """
    weights = [source.weight for source in sources]
    if any(weights) and not all(weights):
        raise ValueError(
            f"{sources[weights.index(None)].path} has no weight, but another dataset of the same "
            "site has: give each of them one, or none"
        )


def require_no_mixture(sources: Sequence[TrainingSource]) -> None:
    """Do nothing if no source has a weight.

    Raises:
        ValueError: one has, which privacy for examples forbids.
    """
    if any(source.weight for source in sources):
        raise ValueError(
            "datasets[].weight draws the records of one dataset more often than another's, but "
            "privacy.unit: example draws each with the same probability, which is what is charged: "
            "remove it"
        )
