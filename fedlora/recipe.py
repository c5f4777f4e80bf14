"""A recipe: the whole run as one frozen, validated value. Keys are spelled as Axolotl spells them.

All of it is resolved and checked before anything is loaded.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedlora.document import Document, write_yaml
from fedlora.errors import RecipeError

STANDARD_LIBRARY = "standard-library"
"""Dataset path that means the documentation of the running interpreter's standard library."""

EMBEDDED = "embedded"
"""Base model that means the small model inside the package."""

NAME = "[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"
"""Regular expression of the name of a run or a site; it also names files and folders."""

Method = Literal["average"]
DatasetType = Literal["auto", "messages", "prompt-completion", "alpaca", "text"]
Codec = Literal["fp32"]


class _Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True
    )


Name = Annotated[str, Field(pattern=f"^{NAME}$")]
Count = Annotated[int, Field(ge=1)]
Strings = Annotated[tuple[str, ...], Field(strict=False)]


class Dataset(_Section):
    """One source of training rows."""

    path: Annotated[str, Field(min_length=1)]
    """A file (.jsonl, .json, .csv, .txt, .md), a folder of such files, or ``standard-library``."""
    type: DatasetType = "auto"
    """Format of the rows; ``auto`` detects it."""
    packages: Strings = ()
    """Which packages of the standard library to read; all when empty."""
    site: Name | None = None
    """The site that holds this data; without it the rows are dealt out among all sites."""

    @model_validator(mode="after")
    def _packages_are_of_the_standard_library(self) -> Self:
        if self.packages and self.path != STANDARD_LIBRARY:
            raise ValueError(f"packages can only be named with path: {STANDARD_LIBRARY}")
        return self


class Federation(_Section):
    """Who trains, for how long, and how the updates become one."""

    rounds: Count = 8
    local_steps: Count = 15
    """Optimiser steps of each client in each round."""
    sites: Count | None = None
    """Number of sites; by default as many as the datasets name, or 4 if they name none."""
    cohort_size: Count | None = None
    """Clients drawn for each round; by default all."""
    method: Method = "average"
    quorum: Count | None = None
    """Updates that a round needs; by default more than half of the cohort."""
    round_timeout: Annotated[float, Field(gt=0)] = 3600
    """Seconds after which a round goes on without the clients that have not answered."""
    node_timeout: Annotated[float, Field(gt=0)] = 600
    """Seconds to wait for enough clients to be connected."""
    max_update_norm: Annotated[float, Field(gt=0)] = 10
    """An update is refused when its norm is above this multiple of the last round's median norm."""
    evaluate_every: Annotated[int, Field(ge=0)] = 1
    """Rounds between evaluations at the sites, besides those at both ends; 0 for none at all."""


class Wire(_Section):
    """What travels."""

    codec: Codec = "fp32"
    max_bytes: Count = 2**31
    """Largest message that is accepted."""


class Simulation(_Section):
    """What only a local simulation needs."""

    engine: Literal["in-process", "ray"] = "in-process"
    compare: bool = False
    """Also train each site alone and all data pooled, for as many steps."""


class Recipe(_Section):
    """The whole run."""

    name: Name = "run"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    base_model: Annotated[str, Field(min_length=1)] = EMBEDDED
    """``embedded``, a local folder, or a hub id such as ``meta-llama/Llama-3.2-1B``."""
    base_model_revision: str | None = None
    adapter: Literal["lora", "qlora"] = "lora"
    lora_r: Count = 8
    lora_alpha: Annotated[float, Field(gt=0)] = 16
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0
    lora_target_modules: (
        Literal["all-linear"] | Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
    ) = "all-linear"
    sequence_len: Annotated[int, Field(ge=8)] = 512
    """Longest example in tokens; a longer one keeps its end-most supervised part."""
    train_on_inputs: bool = False
    """Learn the prompts too, not the answers alone."""
    val_set_size: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of each site's rows that is held out for evaluation."""
    datasets: Annotated[tuple[Dataset, ...], Field(strict=False, min_length=1)]
    micro_batch_size: Count = 8
    gradient_accumulation_steps: Count = 1
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    lr_scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    """Runs once over all rounds, not anew in each."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.03
    weight_decay: Annotated[float, Field(ge=0)] = 0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1
    gradient_checkpointing: bool = False
    bf16: Literal["auto"] | bool = "auto"
    """Compute in bfloat16 over float32 adapters; ``auto``: where the processor has it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    federation: Federation = Federation()
    wire: Wire = Wire()
    simulation: Simulation = Simulation()

    @model_validator(mode="after")
    def _sites_are_consistent(self) -> Self:
        labelled = [dataset.site for dataset in self.datasets if dataset.site]
        if labelled and len(labelled) < len(self.datasets):
            raise ValueError("either every dataset names its site, or none does")
        named = len(set(labelled)) or None
        sites = self.federation.sites
        if named and sites and named != sites:
            raise ValueError(f"the datasets name {named} sites, but federation.sites is {sites}")
        federation = self.federation.model_copy(update={"sites": named or sites or 4})
        object.__setattr__(self, "federation", federation)
        return self

    @model_validator(mode="after")
    def _cohort_fits(self) -> Self:
        cohort, sites = self.federation.cohort_size, len(self.site_names)
        if cohort and cohort > sites:
            raise ValueError(f"federation.cohort_size is {cohort}, but there are {sites} sites")
        quorum = self.federation.quorum
        if quorum and quorum > (cohort or sites):
            raise ValueError(f"federation.quorum is {quorum}, but a cohort has {cohort or sites}")
        return self

    @property
    def site_names(self) -> tuple[str, ...]:
        """The sites in the order in which the datasets name them, or ``site-1`` and so on."""
        labelled = dict.fromkeys(dataset.site for dataset in self.datasets if dataset.site)
        return tuple(labelled) or tuple(f"site-{i + 1}" for i in range(self.federation.sites or 4))

    @property
    def cohort_size(self) -> int:
        """Clients of a round."""
        return self.federation.cohort_size or len(self.site_names)

    @property
    def batch_size(self) -> int:
        """Examples behind one optimiser step."""
        return self.micro_batch_size * self.gradient_accumulation_steps

    @property
    def max_examples(self) -> int:
        """Most examples that a client can train on in a round."""
        return self.federation.local_steps * self.batch_size

    @property
    def total_steps(self) -> int:
        """Optimiser steps of a client that takes part in every round."""
        return self.federation.rounds * self.federation.local_steps

    def to_yaml(self) -> str:
        """Return the resolved recipe as YAML that ``from_yaml`` reads back to an equal recipe."""
        return write_yaml(self.model_dump(mode="json"))

    @property
    def digest(self) -> str:
        """SHA-256 of the resolved recipe, in hexadecimal."""
        return hashlib.sha256(self.to_yaml().encode()).hexdigest()

    @classmethod
    def from_yaml(cls, text: str, *, source: str = "recipe", overrides: Sequence[str] = ()) -> Self:
        """Read and validate a recipe.

        Args:
            text: the YAML document.
            source: what error messages call it, usually its path.
            overrides: ``section.key=value`` items that replace what the document says.

        Raises:
            RecipeError: names the source, the line, the key, what was expected and what to do.
        """
        document = Document.read(text, source=source)
        for override in overrides:
            document.override(override)
        try:
            return cls.model_validate(document.values)
        except ValidationError as error:
            raise RecipeError(document.explain(error, model=cls)) from None


def read_recipe(path: Path, *, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file; relative dataset and model paths stay relative to the working folder.

    Raises:
        RecipeError: the file is missing, is not YAML, or is not a valid recipe.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: the recipe cannot be read ({error}).") from None
    return Recipe.from_yaml(text, source=str(path), overrides=overrides)
