"""Who trains, for how long, and how the updates become one."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedlora.methods import COORDINATE_WISE, METHODS, Method, MethodFacts, Robust, ServerOptimizer
from fedlora.sections.section import Count, Section


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
    stage_timeout: Annotated[float, Field(gt=0)] = 300
    """Seconds to wait in each stage of a secure sum, after which those that are silent count as
    dropped out."""
    node_timeout: Annotated[float, Field(gt=0)] = 600
    """Seconds to wait for enough clients to be connected."""
    max_update_norm: Annotated[float, Field(gt=0)] = 10
    """An update is refused when its norm is above this multiple of the last round's median norm."""
    evaluate_every: Annotated[int, Field(ge=0)] = 1
    """Rounds between evaluations at the sites, besides those at both ends; 0 for none at all."""
    proximal_mu: Annotated[float, Field(ge=0)] = 0
    """Weight of FedProx's term, which pulls each step towards the received adapter."""
    drift_correction: bool = False
    """Correct each site's steps by the difference of its own last direction and that of all."""

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

    @model_validator(mode="after")
    def _drift_can_be_known(self) -> Self:
        if not self.drift_correction:
            return self
        if self.facts.turns or self.facts.personal:
            raise ValueError(
                "drift_correction compares factors of one round with those of the next, but with "
                f"method {self.method} they turn from round to round, or stay at their site: take "
                "freeze-a, average or alternate"
            )
        if not self.adds:
            raise ValueError(
                "with drift_correction a site tells from the global adapter where all sites went, "
                "which it can if the server only adds: set server_optimizer: sgd, "
                "server_momentum: 0 and server_learning_rate: 1"
            )
        return self

    @property
    def evaluated_rounds(self) -> frozenset[int]:
        """After which rounds sites are asked for their held-out loss: both ends, and between."""
        every, rounds = self.evaluate_every, self.rounds
        return frozenset({0, *range(every, rounds + 1, every), rounds}) if every else frozenset()

    @property
    def adds(self) -> bool:
        """Whether the global adapter moves by a round's update and nothing else."""
        plain = self.server_optimizer == "sgd" and self.server_momentum == 0
        return plain and self.server_learning_rate == 1

    @property
    def facts(self) -> MethodFacts:
        """What holds for the method."""
        return METHODS[self.method]
