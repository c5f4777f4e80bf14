"""Where training rows come from, and whose they are."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedlora.sections.section import Count, Name, Section, Strings

AT_SITE = "at-site"
"""Dataset path that means what the site's own ``site.yaml`` names."""

STANDARD_LIBRARY = "standard-library"
"""Dataset path that means the documentation of the running interpreter's standard library."""

DatasetType = Literal["auto", "messages", "prompt-completion", "alpaca", "text-label", "text"]


class Source(Section):
    """Files with training rows."""

    path: Annotated[str, Field(min_length=1)]
    """A file (.jsonl, .json, .csv, .txt, .md), a folder of such files, or ``standard-library``."""
    type: DatasetType = "auto"
    """Format of the rows; ``auto`` detects it."""
    packages: Strings = ()
    """Which packages of the standard library to read; all when empty."""

    @model_validator(mode="after")
    def _packages_are_of_the_standard_library(self) -> Self:
        if self.packages and self.path != STANDARD_LIBRARY:
            raise ValueError(f"packages can only be named with path: {STANDARD_LIBRARY}")
        return self


class Dataset(Source):
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
