"""The sections of a recipe, each a frozen, validated value."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedlora.methods import COORDINATE_WISE, METHODS, Method, MethodFacts, Robust, ServerOptimizer

AT_SITE = "at-site"
"""Dataset path that means what the site's own ``site.yaml`` names."""

STANDARD_LIBRARY = "standard-library"
"""Dataset path that means the documentation of the running interpreter's standard library."""

NAME = "[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"
"""Regular expression of the name of a run or a site; it also names files and folders."""

DatasetType = Literal["auto", "messages", "prompt-completion", "alpaca", "text"]
Codec = Literal["fp32", "bf16", "int8", "nf4"]
PrivacyUnit = Literal["none", "example", "client"]


def most_delta(records: int) -> float:
    """Return the largest δ that means anything over so many records: 1 / (10 · records).

    With a δ of 1 / records, publishing a record drawn at random would count as private.
    """
    return 1 / (10 * records)


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


class Federation(Section):
    """Who trains, for how long, and how the updates become one."""

    rounds: Count = 8
    local_steps: Count = 15
    """Optimiser steps of each client in each round."""
    sites: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Number of sites; by default as many as the datasets name, or 4 if they name none."""
    cohort_size: Count | None = None
    """Clients drawn for each round; by default all."""
    cohort_sampling: Literal["fixed-size", "poisson"] = "fixed-size"
    """``poisson``: each site takes part by a secret draw of its own, ``cohort_size`` on average."""
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
        if self.cohort_sampling == "poisson" and self.quorum:
            raise ValueError(
                "quorum is a number of updates, but with cohort_sampling: poisson a cohort may be "
                "of any size: remove it, and more than half of those drawn are needed"
            )
        if self.server_learning_rate is None:
            rate = 1.0 if self.server_optimizer == "sgd" else 0.01
            object.__setattr__(self, "server_learning_rate", rate)
        return self

    @property
    def evaluated_rounds(self) -> frozenset[int]:
        """After which rounds sites are asked for their held-out loss: both ends, and between."""
        every, rounds = self.evaluate_every, self.rounds
        return frozenset({0, *range(every, rounds + 1, every), rounds}) if every else frozenset()

    @property
    def facts(self) -> MethodFacts:
        """What holds for the method."""
        return METHODS[self.method]


class Privacy(Section):
    """What is promised, and to whom; ``unit`` has no default, so that each recipe says it."""

    unit: PrivacyUnit
    """What differential privacy hides: nothing, one training record, or all data of one client."""
    epsilon: Annotated[float, Field(gt=0, le=50)] | None = None
    """What the whole run may cost; the noise follows."""
    delta: Annotated[float, Field(gt=0, le=1e-2)] | None = None
    records: Count | None = None
    """Training records of each site, as declared: a rounded number, which becomes public."""
    clip_quantile: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Move the clip of single gradients, from ``max_grad_norm`` on, to this quantile of their
    norms."""
    evaluation_noise: Annotated[float, Field(gt=0)] | None = None
    """Noise multiplier of each evaluation; without it nothing is evaluated."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Largest norm of a client's update (unit ``client``)."""

    @model_validator(mode="after")
    def _keys_are_of_the_unit(self) -> Self:
        needed, allowed = _PRIVACY_KEYS[self.unit]
        given = {key for key in type(self).model_fields if getattr(self, key) is not None}
        for key in sorted(needed - given):
            raise ValueError(f"unit: {self.unit} needs {key}")
        for key in sorted(given - needed - allowed - {"unit"}):
            raise ValueError(f"{key} has no effect with unit: {self.unit}: remove it")
        return self

    def require_fit(
        self, federation: Federation, *, records: Mapping[str, int | None], batch_size: int
    ) -> None:
        """Do nothing if the run can keep what is promised.

        Args:
            federation: how the run goes.
            records: what each site declares.
            batch_size: records that a step draws on average.

        Raises:
            ValueError: it cannot.
        """
        if self.unit == "example":
            self._require_examples(federation, records=records, batch_size=batch_size)
        elif any(records.values()):
            raise ValueError("records has no effect without privacy.unit: example: remove it")
        if self.unit == "client":
            self._require_sums(federation)
            self._require_delta(len(records), of="clients")
        elif federation.cohort_sampling == "poisson":
            raise ValueError(
                "federation.cohort_sampling: poisson has no effect without privacy.unit: client: "
                "remove it"
            )

    def _require_examples(
        self, federation: Federation, *, records: Mapping[str, int | None], batch_size: int
    ) -> None:
        for site, count in records.items():
            if not count:
                raise ValueError(
                    f"privacy.unit: example needs the number of training records of {site}: "
                    "declare privacy.records, or records of its dataset"
                )
            if batch_size > count:
                raise ValueError(
                    f"a step draws {batch_size} records (micro_batch_size times "
                    f"gradient_accumulation_steps), but {site} declares {count}"
                )
            self._require_delta(count, of=f"records at {site}")
        if federation.evaluate_every and not self.evaluation_noise:
            raise ValueError(
                "each evaluation of private held-out rows costs privacy: set "
                "privacy.evaluation_noise, or federation.evaluate_every: 0"
            )
        if self.evaluation_noise and not federation.evaluate_every:
            raise ValueError(
                "privacy.evaluation_noise has no effect with federation.evaluate_every: 0: "
                "remove it"
            )

    def _require_sums(self, federation: Federation) -> None:
        sees = "looks at single updates, but privacy.unit: client may see their noised sum alone"
        if not federation.facts.plain_sum or federation.facts.personal:
            raise ValueError(f"federation.method: {federation.method} {sees}: take freeze-a")
        if federation.robust != "none":
            raise ValueError(f"federation.robust: {federation.robust} {sees}: take none")
        if federation.weighting != "uniform" or federation.max_weight:
            raise ValueError(
                "privacy.unit: client counts each client the same: set federation.weighting: "
                "uniform, and remove max_weight"
            )
        if federation.evaluate_every:
            raise ValueError(
                "an evaluation tells of single clients, which privacy.unit: client hides: set "
                "federation.evaluate_every: 0"
            )

    def _require_delta(self, count: int, *, of: str) -> None:
        if self.delta and self.delta > most_delta(count):
            raise ValueError(
                f"privacy.delta is {self.delta:g}, but with {count} {of} at most "
                f"1/{10 * count} means anything"
            )


_PRIVACY_KEYS: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {
    "none": (frozenset(), frozenset()),
    "example": (
        frozenset({"epsilon", "delta"}),
        frozenset({"records", "clip_quantile", "evaluation_noise"}),
    ),
    "client": (frozenset({"epsilon", "delta", "clip_norm"}), frozenset()),
}
"""The keys that a unit needs, and those that it takes besides."""


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
    reproducible_noise: bool = False
    """Draw privacy's noise and samples from the seed: for tests and studies; it protects nobody."""
