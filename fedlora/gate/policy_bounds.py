"""What a recipe may ask of a site, bound by bound: the part of a policy that judges recipes."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedlora.adapter import AdapterSpec
from fedlora.methods import METHODS, Method
from fedlora.recipe import Recipe
from fedlora.sections import Count, Digest, PrivacyUnit, Section, Strings

_PROTECTION: Sequence[PrivacyUnit] = ("none", "client", "example")
"""Privacy units by what they hide from the aggregator; with ``client`` it sees each update."""

_SHOWN = 80
"""Letters that are shown of what the aggregator wrote."""


class AllowedBase(Section):
    """A base model that may be trained on."""

    digest: Digest
    """``AdapterSpec.base_digest``: weights, configuration, tokenizer and chat template."""
    name: str = ""
    """For people; the digest decides."""


class Range(Section):
    """Whole numbers between two ends, both included."""

    min: Count
    max: Count

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min is {self.min}, which is above max, {self.max}")
        return self


class Share(Section):
    """Of a site's rows, between two ends, both included."""

    min: Annotated[float, Field(gt=0, lt=1)]
    max: Annotated[float, Field(gt=0, lt=1)]

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min is {self.min:g}, which is above max, {self.max:g}")
        return self


class LeastPrivacy(Section):
    """The least that a recipe must promise, by its own keys; the ledger keeps the account."""

    unit: PrivacyUnit
    """``example``: only that. ``client``: that too, which trusts the aggregator. ``none``: any."""
    max_epsilon: Annotated[float, Field(gt=0)] = 8
    """Of a run; not asked of ``unit: none``, which has no ε."""
    max_delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5


class Bounds(Section):
    """Within these a recipe is allowed without being named; both ends are included."""

    base_models: Annotated[tuple[AllowedBase, ...], Field(strict=False, min_length=1)] = Field(
        description="name the digest of each base model that may be trained on"
    )
    privacy: LeastPrivacy = Field(description="say the least that must be promised: {unit: …}")
    objectives: Annotated[
        tuple[Literal["sft", "dpo", "classification"], ...], Field(strict=False, min_length=1)
    ] = ("sft",)
    """What may be learned from rows. With ``classification``, a head of the recipe's labels is
    trained whole, whatever ``modules`` says."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-2
    """At most, like the three that follow: together they bound what a step can do."""
    scaling: Annotated[float, Field(gt=0)] = 16
    """What B·A is multiplied by: ``lora_alpha / lora_r``, or ``/ √lora_r`` for rsLoRA."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 10
    weight_decay: Annotated[float, Field(ge=0)] = 1
    batch_size: Range = Range(min=8, max=1024)
    """Examples behind one optimiser step: gradients of few of them can be inverted."""
    local_steps: Count = 200
    """At most, in a round."""
    rounds: Count = 100
    """At most."""
    lora_r: Count = 64
    """At most: of what this site trains, and of the global adapter."""
    modules: Literal["all-linear"] | Annotated[Strings, Field(min_length=1)] = "all-linear"
    """Modules that may be adapted, as in ``lora_target_modules``: a path, or the end of one."""
    train_on_inputs: bool = False
    """Whether prompts may be learned too."""
    sequence_len: Count = 4096
    """At most."""
    val_set_size: Share = Share(min=0.05, max=0.5)
    """Rows that are held out: were it nearly none or nearly all, one row alone would be evaluated,
    or trained on."""
    seeds: Literal["any"] | Annotated[tuple[int, ...], Field(strict=False, min_length=1)] = "any"
    methods: Annotated[tuple[Method, ...], Field(strict=False, min_length=1)] = tuple(
        method for method, facts in METHODS.items() if not facts.personal
    )
    """By default all but those that keep a factor at the site: the norm of B·A, which bounds what
    comes in, cannot be known without it."""

    def violations(self, recipe: Recipe, spec: AdapterSpec, *, site: str) -> Iterator[str]:
        """Yield each bound that a recipe breaks: its key, what is allowed, and what is asked.

        Args:
            recipe: as the aggregator sent it.
            spec: of its global adapter.
            site: this one.
        """
        yield from self._of_base(recipe, spec)
        yield from self._of_privacy(recipe)
        yield from self._of_adapter(recipe, spec, site=site)
        federation, size, held_out = recipe.federation, self.batch_size, self.val_set_size
        for key, most, asked in (
            ("learning_rate", self.learning_rate, recipe.learning_rate),
            ("scaling", self.scaling, recipe.scaling),
            ("max_grad_norm", self.max_grad_norm, recipe.max_grad_norm),
            ("weight_decay", self.weight_decay, recipe.weight_decay),
            ("local_steps", self.local_steps, federation.local_steps),
            ("rounds", self.rounds, federation.rounds),
            ("sequence_len", self.sequence_len, recipe.sequence_len),
        ):
            if asked > most:
                yield _line(key, f"at most {most:g}", f"{asked:g}")
        if not size.min <= recipe.batch_size <= size.max:
            yield _line("batch_size", f"{size.min} to {size.max}", str(recipe.batch_size))
        if not held_out.min <= recipe.val_set_size <= held_out.max:
            allowed = f"{held_out.min:g} to {held_out.max:g}"
            yield _line("val_set_size", allowed, f"{recipe.val_set_size:g}")
        if recipe.train_on_inputs and not self.train_on_inputs:
            yield _line("train_on_inputs", "false", "true")
        if recipe.init_from is not None:
            yield (
                "init_from: an adapter that the aggregator chose can be a crafted one, so that "
                f"recipe {recipe.digest} is allowed by its digest alone: add it to policy.recipes"
            )
        if recipe.objective not in self.objectives:
            yield _line("objectives", ", ".join(self.objectives), recipe.objective)
        if self.seeds != "any" and recipe.seed not in self.seeds:
            yield _line("seeds", ", ".join(map(str, self.seeds)), str(recipe.seed))
        if federation.method not in self.methods:
            yield _line("methods", ", ".join(self.methods), federation.method)

    def _of_base(self, recipe: Recipe, spec: AdapterSpec) -> Iterator[str]:
        known = [base.digest for base in self.base_models]
        if spec.base_digest not in known:
            allowed = ", ".join(base.name or base.digest[:12] for base in self.base_models)
            asked = f"{recipe.base_model!r:.{_SHOWN}} of digest {spec.base_digest!r:.{_SHOWN}}"
            yield _line("base_models", allowed, asked)

    def _of_privacy(self, recipe: Recipe) -> Iterator[str]:
        least, asked = self.privacy, recipe.privacy
        if _PROTECTION.index(asked.unit) < _PROTECTION.index(least.unit):
            allowed = " or ".join(reversed(_PROTECTION[_PROTECTION.index(least.unit) :]))
            yield _line("privacy.unit", allowed, asked.unit)
        if asked.epsilon is not None and asked.epsilon > least.max_epsilon:
            yield _line(
                "privacy.max_epsilon", f"at most {least.max_epsilon:g}", f"{asked.epsilon:g}"
            )
        if asked.delta is not None and asked.delta > least.max_delta:
            yield _line("privacy.max_delta", f"at most {least.max_delta:g}", f"{asked.delta:g}")

    def _of_adapter(self, recipe: Recipe, spec: AdapterSpec, *, site: str) -> Iterator[str]:
        rank = max(spec.rank, recipe.rank, recipe.rank_of(site))
        if rank > self.lora_r:
            yield _line("lora_r", f"at most {self.lora_r}", str(rank))
        if self.modules == "all-linear":
            return
        allowed = tuple(self.modules)
        if others := sorted(module for module in spec.modules if not _named(module, allowed)):
            more = f" and {len(others) - 1} others" if others[1:] else ""
            yield _line("modules", ", ".join(allowed), f"{others[0]!r:.{_SHOWN}}{more}")


def _named(module: str, names: Sequence[str]) -> bool:
    """Tell whether a module is one of those named, by its path or the end of it."""
    return any(module == name or module.endswith(f".{name}") for name in names)


def _line(key: str, allowed: str, asked: str) -> str:
    return f"bounds.{key}: {allowed} is allowed, but {asked} is asked"
