"""What is promised, and to whom."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedlora.sections.federation import Federation
from fedlora.sections.section import Count, Section

PrivacyUnit = Literal["none", "example", "client"]
ThreatModel = Literal["malicious-aggregator", "honest-but-curious"]


def most_delta(records: int) -> float:
    """Return the largest δ that means anything over so many records: 1 / (10 · records).

    With a δ of 1 / records, publishing a record drawn at random would count as private.
    """
    return 1 / (10 * records)


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
    """Largest norm of a client's update (unit ``client``, or with ``secure_aggregation``, where
    it is 100 by default)."""
    secure_aggregation: bool = False
    """Show the aggregator the sum of a round's updates, and no single one."""
    threat_model: ThreatModel | None = None
    """Whether the aggregator may lie; with ``secure_aggregation`` by default it may."""
    colluders: Annotated[int, Field(ge=0)] | None = None
    """Clients of a cohort that may tell the aggregator all that they know; by default as many as
    the threshold stands, but fewer than a third."""
    threshold: Count | None = None
    """Clients that open a round's sum together, without which there is none; by default more than
    two thirds of a cohort."""
    dropout_rate: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Share of a cohort of more than 100 that may drop out in a round; by default 0.05."""

    @model_validator(mode="after")
    def _keys_are_of_the_unit(self) -> Self:
        needed, allowed = _PRIVACY_KEYS[self.unit]
        given = {key for key in type(self).model_fields if getattr(self, key) is not None}
        for key in sorted(needed - given):
            raise ValueError(f"unit: {self.unit} needs {key}")
        if self.secure_aggregation:
            allowed |= _SECURE_KEYS | {"clip_norm"}
        for key in sorted(given & _SECURE_KEYS - allowed):
            raise ValueError(f"{key} has no effect without secure_aggregation: true: remove it")
        for key in sorted(given - needed - allowed - {"unit", "secure_aggregation"}):
            raise ValueError(f"{key} has no effect with unit: {self.unit}: remove it")
        return self

    @model_validator(mode="after")
    def _sums_have_a_threat_model(self) -> Self:
        if self.secure_aggregation and self.threat_model is None:
            object.__setattr__(self, "threat_model", "malicious-aggregator")
        return self

    def threshold_of(self, cohort: int) -> int:
        """Return how many of a cohort's clients open its sum together: t."""
        return self.threshold or 2 * cohort // 3 + 1

    def colluders_of(self, cohort: int) -> int:
        """Return how many of a cohort's clients may collude with the aggregator: |C|.

        By default ⌈n/3⌉ - 1 as with the default threshold, which stands so many even if the
        aggregator lies; with another threshold at most as many as it stands.
        """
        if self.colluders is not None:
            return self.colluders
        threshold = self.threshold_of(cohort)
        malicious = self.threat_model == "malicious-aggregator"
        stands = 2 * threshold - cohort - 1 if malicious else threshold - 1
        return max(0, min((cohort - 1) // 3, stands))

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
        if federation.drift_correction:
            raise ValueError(
                "federation.drift_correction makes an update depend on when its client last took "
                "part, which privacy.unit: client does not account for: remove it"
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


_SECURE_KEYS = frozenset({"threat_model", "colluders", "threshold", "dropout_rate"})
"""The keys that say something of ``secure_aggregation`` alone."""
_PRIVACY_KEYS: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {
    "none": (frozenset(), frozenset()),
    "example": (
        frozenset({"epsilon", "delta"}),
        frozenset({"records", "clip_quantile", "evaluation_noise"}),
    ),
    "client": (frozenset({"epsilon", "delta", "clip_norm"}), frozenset()),
}
"""The keys that a unit needs, and those that it takes besides."""
