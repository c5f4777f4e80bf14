"""A recipe: the whole run as one frozen, validated value. Keys are spelled as Axolotl spells them.

All of it is resolved and checked before anything is loaded.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from fedlora.document import Document, write_yaml
from fedlora.errors import RecipeError
from fedlora.lock import Lock
from fedlora.publish import Publish
from fedlora.sections import (
    BaseKeys,
    DataKeys,
    Federation,
    LoraKeys,
    ObjectiveKeys,
    Privacy,
    RunKeys,
    Simulation,
    TrainingKeys,
    Wire,
)

_PRIVATE_DEFAULTS: Mapping[str, Mapping[str, str]] = {
    "example": {"method": "freeze-a"},
    "client": {"method": "freeze-a", "weighting": "uniform"},
}
"""Other defaults of the federation, by the privacy unit."""


class Recipe(  # in YAML the last comes first
    TrainingKeys, ObjectiveKeys, DataKeys, LoraKeys, BaseKeys, RunKeys
):
    """The whole run."""

    privacy: Privacy = Field(
        description="say what is promised, such as privacy: {unit: none} or the unit example"
    )
    federation: Federation = Federation()
    wire: Wire = Wire()
    simulation: Simulation = Simulation()
    publish: Publish = Publish()
    lock: Lock | None = None

    @model_validator(mode="before")
    @classmethod
    def _private_runs_have_defaults(cls, values: Any) -> Any:  # noqa: ANN401 - whatever was written
        """Take the method that suits noise best, unless one is named, and weights that may be."""
        if not isinstance(values, Mapping):
            return values
        privacy, federation = values.get("privacy"), values.get("federation") or {}
        if not (isinstance(privacy, Mapping) and isinstance(federation, Mapping)):
            return values
        defaults = _PRIVATE_DEFAULTS.get(str(privacy.get("unit")), {})
        return {**values, "federation": {**defaults, **federation}} if defaults else values

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
        clients, attackers = cohort or sites, self.attackers
        if self.federation.robust in {"multi-krum", "trimmed-mean"} and not attackers:
            raise ValueError(
                f"federation.robust: {self.federation.robust} stands as many attackers as are "
                f"assumed, but {self.federation.attackers:g} of a cohort of {clients} is no "
                f"client: set federation.attackers to {1 / clients:.2g} or more"
            )
        if self.federation.robust == "multi-krum" and clients < 2 * attackers + 3:
            raise ValueError(
                f"federation.robust: multi-krum needs a cohort of {2 * attackers + 3} to stand "
                f"{attackers} attackers, but a cohort has {clients}; lower federation.attackers"
            )
        if self.federation.robust == "cosine-filter" and clients < 3:
            raise ValueError(
                "federation.robust: cosine-filter asks the majority of at least 3 clients, but a "
                f"cohort has {clients}: take norm-bound"
            )
        quorum = self.federation.quorum
        if quorum and quorum > clients:
            raise ValueError(f"federation.quorum is {quorum}, but a cohort has {clients}")
        if self.federation.cohort_sampling == "poisson" and clients == sites:
            raise ValueError(
                "federation.cohort_sampling: poisson lets each site take part with a probability "
                f"of cohort_size / sites: set federation.cohort_size below {sites}"
            )
        return self

    @model_validator(mode="after")
    def _ranks_fit(self) -> Self:
        ranks = {dataset.site: dataset.lora_r for dataset in self.datasets if dataset.lora_r}
        differing = [d for d in self.datasets if d.site in ranks and d.lora_r != ranks[d.site]]
        if differing:
            raise ValueError(f"the datasets of site {differing[0].site} have different lora_r")
        if ranks and not self.federation.facts.mixed_ranks:
            raise ValueError(
                f"a dataset has a lora_r of its own, but federation.method {self.federation.method}"
                " needs one rank everywhere: take method: product"
            )
        largest, published = max(ranks.values(), default=0), self.federation.publish_rank
        if published and published < max(self.lora_r, largest):
            raise ValueError(
                f"federation.publish_rank is {published}, but sites train up to rank "
                f"{max(self.lora_r, largest)}"
            )
        return self

    @model_validator(mode="after")
    def _objective_fits(self) -> Self:
        if self.labels and self.train_on_inputs:
            raise ValueError(
                "train_on_inputs has no effect with objective: classification, which predicts no "
                "token: remove it"
            )
        if self.labels and self.publish.forgetting:
            raise ValueError(
                "publish.forgetting is the loss of the next token on a public text, but with "
                "objective: classification the base has a head for labels alone: remove it"
            )
        return self

    @model_validator(mode="after")
    def _privacy_fits(self) -> Self:
        if self.privacy.unit != "none" and self.simulation.compare:
            raise ValueError(
                "simulation.compare prints what data without noise gives, which "
                f"privacy.unit: {self.privacy.unit} forbids: set it to false"
            )
        if self.privacy.unit == "example" and self.lora_dropout:
            raise ValueError(
                "lora_dropout draws from a generator whose seed can be guessed, which "
                "privacy.unit: example forbids: set it to 0"
            )
        if self.privacy.unit == "client" and self.wire.compress:
            raise ValueError(
                "with wire.compress the size of an update tells of its values, which "
                "privacy.unit: client hides: set it to false"
            )
        self.privacy.require_fit(
            self.federation,
            records={site: self.records_of(site) for site in self.site_names},
            batch_size=self.batch_size,
        )
        self.publish.require_fit(self.federation)
        return self

    @property
    def site_names(self) -> tuple[str, ...]:
        """The sites in the order in which the datasets name them, or ``site-1`` and so on."""
        labelled = dict.fromkeys(dataset.site for dataset in self.datasets if dataset.site)
        return tuple(labelled) or tuple(f"site-{i + 1}" for i in range(self.federation.sites or 4))

    @property
    def cohort_size(self) -> int:
        """Clients of a round; with ``cohort_sampling: poisson``, on average."""
        return self.federation.cohort_size or len(self.site_names)

    @property
    def rank(self) -> int:
        """Rank of the global adapter."""
        return self.federation.publish_rank or max(map(self.rank_of, self.site_names))

    def rank_of(self, site: str) -> int:
        """Return the rank that a site trains."""
        ranks = {dataset.site: dataset.lora_r for dataset in self.datasets}
        return ranks.get(site) or self.lora_r

    def records_of(self, site: str) -> int | None:
        """Return how many training records a site declares, if that was asked."""
        declared = [dataset.records for dataset in self.datasets if dataset.site == site]
        return sum(filter(None, declared)) or self.privacy.records

    def sampling_rate(self, site: str) -> float:
        """Return the probability with which each record of a site is in a step's batch."""
        return self.batch_size / (self.records_of(site) or self.batch_size)

    @property
    def attackers(self) -> int:
        """Clients of a cohort that are assumed to be hostile."""
        return math.floor(self.federation.attackers * self.cohort_size + 1e-9)  # 0.29 of 100 is 29

    @property
    def participation_rate(self) -> float:
        """Probability with which a site takes part in a round."""
        return self.cohort_size / len(self.site_names)

    def quorum_of(self, drawn: int) -> int:
        """Return how many good updates a round needs, of the ``drawn`` clients of its cohort.

        ``multi-krum`` promises nothing below its own number; a Poisson cohort may be empty.
        """
        if self.federation.cohort_sampling == "poisson":
            return drawn // 2 + 1 if drawn else 0
        quorum = self.federation.quorum or self.cohort_size // 2 + 1
        return max(quorum, 2 * self.attackers + 3 if self.federation.robust == "multi-krum" else 1)

    @property
    def keeps_gauge(self) -> bool:
        """Whether a factor's values mean the same in the next round, so that they can be kept."""
        federation, facts = self.federation, self.federation.facts
        if facts.fixed_gauge or facts.personal:
            return True
        added = federation.server_momentum == 0 and federation.server_learning_rate == 1
        return added and not facts.turns

    @property
    def batch_size(self) -> int:
        """Examples behind one optimiser step."""
        return self.micro_batch_size * self.gradient_accumulation_steps

    @property
    def examples_of_round(self) -> range:
        """How many examples a client may say that it trained on in a round.

        Under privacy it is the expected number, whatever was drawn.
        """
        most = self.federation.local_steps * self.batch_size
        return range(1 if self.privacy.unit == "none" else most, most + 1)

    @property
    def asked_rounds(self) -> frozenset[int]:
        """After which rounds sites are asked to evaluate, be it on the public text alone."""
        return self.federation.evaluated_rounds | self.publish.text_rounds(self.federation)

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
