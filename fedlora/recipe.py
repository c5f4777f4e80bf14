"""A recipe: the whole run as one frozen, validated value. Keys are spelled as Axolotl spells them.

All of it is resolved and checked before anything is loaded.
"""

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError, model_validator

from fedlora.document import Document, write_yaml
from fedlora.errors import RecipeError
from fedlora.keys import Keys
from fedlora.sections import require_no_mixture, require_secure_sum


class Recipe(Keys):
    """The whole run."""

    @model_validator(mode="before")
    @classmethod
    def _private_runs_have_defaults(cls, values: Any) -> Any:  # noqa: ANN401 - whatever was written
        """Take what suits privacy best where nothing else is said."""
        privacy = values.get("privacy") if isinstance(values, Mapping) else None
        if not isinstance(privacy, Mapping):
            return values
        sections = {name: values.get(name) or {} for name in ("federation", "wire")}
        return {
            **values,
            **{
                name: {**keys, **sections[name]}
                for name, keys in _defaults(privacy).items()
                if keys and isinstance(sections[name], Mapping)
            },
        }

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
    def _objective_fits(self) -> Self:
        if self.objective != "sft" and self.train_on_inputs:
            raise ValueError(
                f"train_on_inputs has no effect with objective: {self.objective}: remove it"
            )
        if self.labels and self.publish.forgetting:
            raise ValueError(
                "publish.forgetting is the loss of the next token on a public text, but with "
                "objective: classification the base has a head for labels alone: remove it"
            )
        return self

    @model_validator(mode="after")
    def _beginning_fits(self) -> Self:
        if self.init_from and self.federation.facts.personal:
            raise ValueError(
                f"federation.method {self.federation.method} begins with factors of zero at each "
                "site, but init_from names an adapter: take another method"
            )
        if self.lock and (self.lock.beginning is None) != (self.init_from is None):
            raise ValueError(
                "init_from is not what the recipe was locked to: remove the lock, and lock it anew"
            )
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
    def _warmup_fits(self) -> Self:
        if self.warmup_steps and self.warmup_steps >= self.total_steps:
            raise ValueError(
                f"warmup_steps is {self.warmup_steps}, but there are {self.total_steps} steps "
                "(federation.rounds times local_steps): lower it"
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
        if self.privacy.unit == "example":
            require_no_mixture(self.datasets)
            if self.excess_length_strategy == "raise":
                raise ValueError(
                    "excess_length_strategy: raise ends a run over one long record, which tells of "
                    "it, and privacy.unit: example forbids that: take truncate or drop"
                )
        if self.privacy.unit == "example" and self.load_in_8bit:
            raise ValueError(
                "load_in_8bit chooses the columns that it does not round by all examples of a "
                "batch together, so that one changes the gradients of others, which "
                "privacy.unit: example forbids: take adapter: qlora"
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
        if self.privacy.secure_aggregation:
            require_secure_sum(
                self.privacy,
                self.federation,
                wire=self.wire,
                simulation=self.simulation,
                cohort=self.cohort_size,
            )
        self.publish.require_fit(self.federation)
        return self

    def to_yaml(self) -> str:
        """Return the resolved recipe as YAML that ``from_yaml`` reads back to an equal recipe."""
        return write_yaml(self.model_dump(mode="json"))

    @property
    def digest(self) -> str:
        """SHA-256 of the resolved recipe, in hexadecimal."""
        return _digest_of(self)

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


def _defaults(privacy: Mapping[str, Any]) -> Mapping[str, Mapping[str, str | int]]:
    """Return by section which keys have another default under such privacy."""
    unit, secure = privacy.get("unit"), privacy.get("secure_aggregation") is True
    federation: dict[str, str | int] = {}
    if secure or unit in ("example", "client"):
        federation["method"] = "freeze-a"
    if unit == "client":
        federation["weighting"] = "uniform"
    if secure and privacy.get("evaluation_noise") is None:
        federation["evaluate_every"] = 0
    return {"federation": federation, "wire": {"codec": "fp32"} if secure else {}}


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


@lru_cache(maxsize=16)
def _digest_of(recipe: Recipe) -> str:
    """Return the digest of a recipe, which with a thousand sites takes 0.1 s to write out."""
    return hashlib.sha256(recipe.to_yaml().encode()).hexdigest()
