"""The sections of a recipe, each a frozen, validated value."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedlora.methods import COORDINATE_WISE, METHODS, Method, MethodFacts, Robust, ServerOptimizer

STANDARD_LIBRARY = "standard-library"
"""Dataset path that means the documentation of the running interpreter's standard library."""

NAME = "[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"
"""Regular expression of the name of a run or a site; it also names files and folders."""

DatasetType = Literal["auto", "messages", "prompt-completion", "alpaca", "text"]
Codec = Literal["fp32", "bf16", "int8", "nf4"]


class Section(BaseModel):
    """What all sections have in common: frozen, strict, unknown keys refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True
    )


Name = Annotated[str, Field(pattern=f"^{NAME}$")]
Count = Annotated[int, Field(ge=1)]
Strings = Annotated[tuple[str, ...], Field(strict=False)]


class Dataset(Section):
    """One source of training rows."""

    path: Annotated[str, Field(min_length=1)]
    """A file (.jsonl, .json, .csv, .txt, .md), a folder of such files, or ``standard-library``."""
    type: DatasetType = "auto"
    """Format of the rows; ``auto`` detects it."""
    packages: Strings = ()
    """Which packages of the standard library to read; all when empty."""
    site: Name | None = None
    """The site that holds this data; without it the rows are dealt out among all sites."""
    lora_r: Count | None = None
    """Rank that this site trains; by default the recipe's."""

    @model_validator(mode="after")
    def _packages_are_of_the_standard_library(self) -> Self:
        if self.packages and self.path != STANDARD_LIBRARY:
            raise ValueError(f"packages can only be named with path: {STANDARD_LIBRARY}")
        return self

    @model_validator(mode="after")
    def _rank_is_of_a_site(self) -> Self:
        if self.lora_r and not self.site:
            raise ValueError("lora_r is the rank of a site: name the site too")
        return self


class Federation(Section):
    """Who trains, for how long, and how the updates become one."""

    rounds: Count = 8
    local_steps: Count = 15
    """Optimiser steps of each client in each round."""
    sites: Count | None = None
    """Number of sites; by default as many as the datasets name, or 4 if they name none."""
    cohort_size: Count | None = None
    """Clients drawn for each round; by default all."""
    method: Method = "product"
    publish_rank: Count | None = None
    """Rank of the global adapter. Above ``lora_r``, sites train the leading components on top of
    the others, which keep what a lower rank would cut off."""
    server_optimizer: ServerOptimizer = "sgd"
    server_learning_rate: Annotated[float, Field(gt=0)] | None = None
    """By default 1 for ``sgd`` and 0.01 for the others."""
    server_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5
    weighting: Literal["examples", "uniform"] = "examples"
    """What a client's update counts by."""
    max_weight: Count | None = None
    """Examples above which a client's update counts no more."""
    robust: Robust = "none"
    """How updates are weighed, or their values chosen, so that hostile clients do little harm."""
    attackers: Annotated[float, Field(ge=0, lt=0.5)] = 0.2
    """Share of a cohort that ``multi-krum`` and ``trimmed-mean`` assume to be hostile."""
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

    @model_validator(mode="after")
    def _method_fits(self) -> Self:
        facts, method = self.facts, self.method
        if self.publish_rank and not facts.mixed_ranks:
            raise ValueError(
                f"publish_rank works with method: product only, but the method is {method}: remove "
                "it, or take product"
            )
        if self.server_optimizer != "sgd" and not facts.fixed_gauge:
            raise ValueError(
                f"server_optimizer {self.server_optimizer} scales each value on its own, but with "
                f"method {method} the factors turn from round to round and only B·A keeps its "
                "meaning: take sgd, or method: freeze-a"
            )
        if self.robust in COORDINATE_WISE and not (facts.plain_sum and facts.exact):
            raise ValueError(
                f"robust: {self.robust} chooses each value on its own, which means something only "
                "where a sum of factors is exact: take multi-krum or geometric-median, or method: "
                "freeze-a, alternate or refresh"
            )
        if self.server_learning_rate is None:
            rate = 1.0 if self.server_optimizer == "sgd" else 0.01
            object.__setattr__(self, "server_learning_rate", rate)
        return self

    @property
    def facts(self) -> MethodFacts:
        """What holds for the method."""
        return METHODS[self.method]


class Wire(Section):
    """What travels."""

    codec: Codec = "int8"
    """Of the increments on their way up; the global adapter travels as float32."""
    compress: bool = False
    """Shuffle the bytes and compress them with zstd, both ways."""
    max_bytes: Count = 2**31
    """Largest message that is accepted."""


class Simulation(Section):
    """What only a local simulation needs."""

    engine: Literal["in-process", "ray"] = "in-process"
    compare: bool = False
    """Also train each site alone and all data pooled, for as many steps."""
