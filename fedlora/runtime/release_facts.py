"""What a manifest says of a release, from what its run has on record.

Nothing that a site is known by comes in: no name, no path of its data, no number of its rows.
"""

import hmac
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median_low
from typing import Any

import torch

from fedlora import __version__, atomic
from fedlora.adapter import AdapterSpec
from fedlora.recipe import Recipe
from fedlora.release.manifest import (
    Adapter,
    Aggregation,
    Base,
    Code,
    Cohort,
    Evaluation,
    Loss,
    Origin,
    Privacy,
    Quantization,
    SecureSums,
)
from fedlora.runtime.charges import round_charge, training_charge
from fedlora.runtime.comparison import losses_of
from fedlora.runtime.privacy_statement import ACCOUNTANTS, statement
from fedlora.runtime.run_folder import RunFolder
from fedlora.runtime.secure_statement import sums_of
from fedlora.runtime.secure_terms import terms_of
from fedlora.training.evaluation import Evaluation as Measured

_KEY_BYTES, _PSEUDONYM_DIGITS, _LOSS_DIGITS = 32, 12, 6


@dataclass(frozen=True)
class Pseudonyms:
    """What a publisher calls sites: HMAC-SHA-256 of their names, under a secret of its own.

    Whoever has the secret can tell the sites; nobody else can, though names may be guessed.
    """

    key: bytes

    @classmethod
    def of(cls, run: RunFolder) -> "Pseudonyms":
        """Return those of all runs beside this one; their secret is made unless there is one.

        Raises:
            StorageError: it cannot be written.
        """
        path = run.path.parent / "pseudonyms.key"
        if not path.is_file():
            atomic.write_secret(path, os.urandom(_KEY_BYTES))
        return cls(path.read_bytes())

    def __call__(self, site: str) -> str:
        digest = hmac.digest(self.key, site.encode(), "sha256").hex()
        return f"site-{digest[:_PSEUDONYM_DIGITS]}"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """A run's facts up to a round.

    Args:
        recipe: of the run.
        records: of its rounds, from the start up to the release's.
        pseudonym: of each site.
        site: whose own factors are in the adapter, if anybody's are.
    """

    recipe: Recipe
    records: Sequence[Mapping[str, Any]]
    pseudonym: Pseudonyms
    site: str | None = None

    def base(self, spec: AdapterSpec) -> Base:
        """Return the base model; its parts are known of a locked recipe."""
        lock = self.recipe.lock
        return Base(
            name=public_name(self.recipe),
            revision=spec.base_model_revision,
            digest=spec.base_digest,
            weights=lock.weights_digest if lock else None,
            tokenizer=lock.tokenizer_digest if lock else None,
            chat_template=lock.chat_template_digest if lock else None,
        )

    def quantization(self) -> Quantization:
        """Return how sites held the base."""
        kind, bf16 = self.recipe.quantization, self.recipe.bf16
        return Quantization(
            kind=kind,
            double_quantization=kind == "nf4",
            compute_dtype="by-device" if bf16 == "auto" else "bfloat16" if bf16 else "float32",
        )

    def origin(self, run: str, *, parent: str | None) -> Origin:
        """Return where the release comes from."""
        beginning = self.recipe.lock.beginning if self.recipe.lock else None
        return Origin(
            run=run,
            round=len(self.records) - 1,
            rounds=self.recipe.federation.rounds,
            recipe=self.recipe.digest,
            parent=parent,
            began_with=beginning.release if beginning else None,
            site=self.pseudonym(self.site) if self.site else None,
        )

    def cohort(self) -> Cohort:
        """Return who took part; of clients that privacy hides, only how many could."""
        took_part = {site for record in self.records for site in record["folded"]}
        hidden = self.recipe.privacy.unit == "client"
        return Cohort(
            population=len(self.recipe.site_names),
            sites=None if hidden else tuple(sorted(map(self.pseudonym, took_part))),
        )

    def aggregation(self) -> Aggregation:
        """Return how updates became one."""
        federation = self.recipe.federation
        tail = self.records[-1].get("tail")
        return Aggregation(
            method=federation.method, robust=federation.robust, truncation_error=tail
        )

    def privacy(self) -> Privacy:
        """Return what is promised.

        Raises:
            BudgetError: no noise keeps the promise.
        """
        recipe = self.recipe
        said = tuple(statement(recipe, self.records))
        if recipe.privacy.unit == "none" or recipe.simulation.reproducible_noise:
            return Privacy(unit=recipe.privacy.unit, statement=said, secure_sums=self._sums())
        mechanism = _of_examples if recipe.privacy.unit == "example" else _of_clients
        return Privacy(
            unit=recipe.privacy.unit,
            epsilon=recipe.privacy.epsilon,  # each site's noise is made for it: the largest, too
            delta=recipe.privacy.delta,
            statement=said,
            secure_sums=self._sums(),
            **mechanism(recipe),
        )

    def _sums(self) -> SecureSums | None:
        """Return on whom secure sums rest, and how exact they were."""
        recipe = self.recipe
        if not recipe.privacy.secure_aggregation or recipe.privacy.threat_model is None:
            return None
        terms = terms_of(recipe)
        sums = sums_of(self.records).values()
        return SecureSums(
            threat_model=recipe.privacy.threat_model,
            cohort=terms.members,
            threshold=terms.threshold,
            neighbours=terms.degree,
            colluders=recipe.colluders,
            fewest=terms_of(recipe).fewest_summed,
            clip=recipe.secure_clip_norm,
            error_bound=max((s["error_bound"] for s in sums if "error_bound" in s), default=None),
        )

    def evaluation(self) -> Evaluation:
        """Return what was measured of base and adapter, at the sites that measured both.

        Each site counts the same: a mean over tokens would tell, beside the sites' own losses, how
        many each has. Under privacy all is noised and charged, and single sites are not shown.
        """
        before, after = (losses_of(self.records[n].get("evaluation", {})) for n in (0, -1))
        sites = sorted(before.keys() & after.keys())
        if self.site:
            sites = [site for site in sites if site == self.site]
        if not sites:
            return Evaluation(forgetting=self._forgetting())
        shown, unit = [_loss(before[site], after[site]) for site in sites], self.recipe.loss_unit
        named = dict(sorted(zip(map(self.pseudonym, sites), shown, strict=True)))
        return Evaluation(
            unit=None if unit == "token" else unit,
            held_out=Loss(
                base=_mean(loss.base for loss in shown),
                adapter=_mean(loss.adapter for loss in shown),
            ),
            sites=named if self.recipe.privacy.unit == "none" else None,
            forgetting=self._forgetting(),
        )

    def _forgetting(self) -> Loss | None:
        """Return the loss on the public text at the median site, by what the adapter changes.

        The text is public and the same work at each site: the median is right as long as most are
        honest.
        """
        before, after = (losses_of(self.records[n].get("public", {})) for n in (0, -1))
        changes = {
            site: (after[site].loss - before[site].loss, site)
            for site in before.keys() & after.keys()
            if self.site in {None, site}
        }
        if not changes:
            return None
        _, site = median_low(changes.values())
        return _loss(before[site], after[site])


def adapter_facts(spec: AdapterSpec, recipe: Recipe) -> Adapter:
    """Return what a manifest says of an adapter's specification, and of what it predicts."""
    return Adapter(
        digest=spec.digest,
        rank=spec.rank,
        alpha=spec.alpha,
        target_modules=spec.target_modules,
        modules=len(spec.modules),
        parameters=spec.size,
        labels=recipe.labels,
    )


def code_facts() -> Code:
    """Return what makes a release."""
    return Code(fedlora=__version__, torch=torch.__version__)


def public_name(recipe: Recipe) -> str:
    """Return what a release calls its base: of a folder of the publisher's, its last part alone."""
    name = recipe.lock.base_model if recipe.lock else recipe.base_model
    is_path = name.startswith(("/", "~", ".")) or name.count("/") > 1
    return recipe.publish.base_model or (Path(name).name if is_path else name)


def _of_examples(recipe: Recipe) -> Mapping[str, Any]:
    charges = [training_charge(recipe, site, steps=1) for site in recipe.site_names]
    return {
        "adjacency": charges[0].adjacency,
        "accountant": ACCOUNTANTS[charges[0].mechanism],
        "clip": recipe.max_grad_norm,
        "noise_multiplier": min(charge.noise_multiplier for charge in charges),
        "sampling": "poisson",
    }


def _of_clients(recipe: Recipe) -> Mapping[str, Any]:
    charge, clip = round_charge(recipe), recipe.privacy.clip_norm or 0
    chosen = recipe.federation.cohort_sampling if recipe.participation_rate < 1 else "all"
    return {
        "adjacency": charge.adjacency,
        "accountant": ACCOUNTANTS[charge.mechanism],
        "clip": clip,
        "noise_multiplier": charge.noise_multiplier * charge.sensitivity / clip,
        "sampling": chosen,
    }


def _mean(losses: Iterable[float]) -> float:
    return round(fmean(losses), _LOSS_DIGITS)


def _loss(base: Measured, adapter: Measured) -> Loss:
    return Loss(base=round(base.loss, _LOSS_DIGITS), adapter=round(adapter.loss, _LOSS_DIGITS))
