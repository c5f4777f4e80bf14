"""``site.yaml``: what a site's operator says of data, device, trainer and policy."""

from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import Field, model_validator

from fedlora.document import read_section
from fedlora.errors import PolicyError
from fedlora.gate.policy import Policy
from fedlora.recipe import Recipe
from fedlora.sections import (
    AT_SITE,
    EMBEDDED,
    STANDARD_LIBRARY,
    Dataset,
    Name,
    Section,
    Source,
    Trackers,
    TrainingSource,
    require_mixture,
    require_no_mixture,
)


class TrainerConfiguration(Section):
    """The process that sees the data."""

    isolation: Literal["required", "none"] = "required"
    """``none`` lets it run with network and keys where the platform cannot keep them from it."""
    user: Annotated[int, Field(ge=1, lt=2**32 - 1)] = 64201
    """Numeric id of the user that it runs as, which owns nothing else."""
    timeout: Annotated[float, Field(gt=0)] = 3600
    """Seconds in which it must answer an instruction."""


class SiteConfiguration(Section):
    """The operator's word."""

    site: Name = Field(description="the name that the aggregator's operator admitted")
    data: Annotated[tuple[TrainingSource, ...], Field(strict=False, min_length=1)] = Field(
        description="name the files to train on, such as data: [{path: rows.jsonl}]"
    )
    """Relative paths begin at ``site.yaml``; rank and number of records are the recipe's to say."""
    public_text: Source | None = None
    """A public text on which to measure what an adapter forgets; without it that is not measured.

    The loss on it leaves without noise: name nothing here that is not public.
    """
    base_model: Annotated[str, Field(min_length=1)] | None = None
    """Folder of the base model on this host; without it only the embedded one is there."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    trackers: Trackers = ()
    """Keep the loss of each step on this host, in files of the trainer's; see docs/trackers.md."""
    trainer: TrainerConfiguration = TrainerConfiguration()
    policy: Policy = Field(
        description="without a policy nothing runs here; say what is allowed, see docs/security.md"
    )

    @model_validator(mode="after")
    def _data_can_be_read(self) -> Self:
        require_mixture(self.data)
        texts = [self.public_text] if self.public_text else []
        for source in (*self.data, *texts):
            if source.name or source.revision:
                raise ValueError(
                    "name and revision are of a data set on the Hub, but the trainer has no "
                    "network: download it (hf download --repo-type dataset), and let path be its "
                    "folder"
                )
        return self


def read_site(path: Path) -> SiteConfiguration:
    """Read a site's configuration, with its paths made absolute.

    Raises:
        PolicyError: the file is missing, is not YAML, has no policy, or a key is unknown or wrong;
            the file, the line and the key are named.
    """
    site = read_section(
        path,
        SiteConfiguration,
        error=PolicyError,
        otherwise="Without a policy nothing runs here; client/site.example.yaml shows one.",
    )
    folder = path.resolve().parent
    text = site.public_text
    update = {
        "data": tuple(_source(source, folder) for source in site.data),
        "public_text": text and _source(text, folder),
        "base_model": site.base_model and _located(site.base_model, folder),
    }
    return site.model_copy(update=update)


def at_site(recipe: Recipe, site: SiteConfiguration) -> Recipe:
    """Return a recipe as the site's trainer plays it: on the operator's data, base and device.

    Guarantees:
        No path of the recipe's for this site, none of a base model or a public text, and none of
        its trackers is left in it. Rank and declared records of each site, and the order of the
        sites, stay.

    Raises:
        PolicyError: the recipe does not name this site, or names a base model that ``site.yaml``
            does not say where to find, or its privacy allows no weights and ``site.yaml`` has some.
    """
    declared = [dataset for dataset in recipe.datasets if dataset.site == site.site]
    if not declared:
        raise PolicyError(
            f"The recipe has no dataset of site {site.site}, only of "
            f"{', '.join(recipe.site_names)}: it asks nothing of this site."
        )
    if site.base_model is None and recipe.base_model != EMBEDDED:
        raise PolicyError(
            f"The recipe's base model is {recipe.base_model!r:.80}: name the folder where it is on "
            "this host as base_model in site.yaml."
        )
    if recipe.privacy.unit == "example":
        try:
            require_no_mixture(site.data)
        except ValueError as error:
            raise PolicyError(f"site.yaml, data: {error}.") from None
    records = sum(dataset.records or 0 for dataset in declared) or None
    own = [
        Dataset(
            **source.model_dump(),
            site=site.site,
            lora_r=declared[0].lora_r,
            records=None if position else records,
        )
        for position, source in enumerate(site.data)
    ]
    place = recipe.datasets.index(declared[0])
    before = recipe.datasets[:place]
    after = [dataset for dataset in recipe.datasets[place:] if dataset.site != site.site]
    update: dict[str, object] = {
        "datasets": (*before, *own, *after),
        "device": site.device,
        "trackers": site.trackers,
    }
    if recipe.publish.forgetting:
        text = site.public_text or Source(path=AT_SITE)
        own_text = recipe.publish.forgetting.model_copy(update=text.model_dump())
        update["publish"] = recipe.publish.model_copy(update={"forgetting": own_text})
    if site.base_model is not None:
        update |= {"base_model": site.base_model, "base_model_revision": None}
    return recipe.model_copy(update=update)


_SourceT = TypeVar("_SourceT", bound=Source)


def _source(source: _SourceT, folder: Path) -> _SourceT:
    return source.model_copy(update={"path": _located(source.path, folder)})


def _located(path: str, folder: Path) -> str:
    """Return a path as it is found from any working folder."""
    if path in (STANDARD_LIBRARY, EMBEDDED):
        return path
    return str((folder / Path(path).expanduser()).resolve())
