"""All keys of a recipe, and what follows from them."""

import math

from pydantic import Field

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
    TrackerKeys,
    TrainingKeys,
    Wire,
)


# The last comes first in YAML.
class Keys(TrackerKeys, TrainingKeys, ObjectiveKeys, DataKeys, LoraKeys, BaseKeys, RunKeys):
    """The keys at the top, and the sections."""

    privacy: Privacy = Field(
        description="say what is promised, such as privacy: {unit: none} or the unit example"
    )
    federation: Federation = Federation()
    wire: Wire = Wire()
    simulation: Simulation = Simulation()
    publish: Publish = Publish()
    lock: Lock | None = None

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

    @property
    def threshold(self) -> int:
        """Clients that open a secure sum together: t."""
        return self.privacy.threshold_of(self.cohort_size)

    @property
    def colluders(self) -> int:
        """Clients of a cohort that may collude with the aggregator of a secure sum: |C|."""
        return self.privacy.colluders_of(self.cohort_size)

    @property
    def dropout_rate(self) -> float:
        """Share of a cohort of more than 100 that may drop out of a secure sum."""
        return 0.05 if self.privacy.dropout_rate is None else self.privacy.dropout_rate

    @property
    def secure_clip_norm(self) -> float:
        """Largest L2 norm of an update in a secure sum, by which its fixed point is scaled."""
        return self.privacy.clip_norm or 100

    def quorum_of(self, drawn: int) -> int:
        """Return how many good updates a round needs, of the ``drawn`` clients of its cohort.

        ``multi-krum`` promises nothing below its own number, and fewer than the threshold open no
        secure sum; a Poisson cohort may be empty.
        """
        if self.federation.cohort_sampling == "poisson":
            return drawn // 2 + 1 if drawn else 0
        quorum = self.federation.quorum or self.cohort_size // 2 + 1
        if self.privacy.secure_aggregation:
            return max(quorum, self.threshold)
        return max(quorum, 2 * self.attackers + 3 if self.federation.robust == "multi-krum" else 1)

    @property
    def keeps_gauge(self) -> bool:
        """Whether a factor's values mean the same in the next round, so that they can be kept."""
        facts = self.federation.facts
        return (
            facts.fixed_gauge or bool(facts.personal) or (self.federation.adds and not facts.turns)
        )

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
