"""What secure aggregation can be combined with, and how many it must withstand.

Of a cohort of n clients any t open the round's sum together, and |C| of them may tell the
aggregator all that they know.

References:
    Bonawitz et al. 2017, "Practical secure aggregation for privacy-preserving machine learning",
    ACM CCS, section 6: t > |C|, and 2t > n + |C| where the aggregator itself may lie. Bell et al.
    2020, "Secure single-server aggregation with (poly)logarithmic overhead", ACM CCS, for more
    than 100 clients.
"""

from fedlora.sections.federation import Federation
from fedlora.sections.privacy import Privacy
from fedlora.sections.simulation import Simulation
from fedlora.sections.wire import Wire

LARGEST_COMPLETE = 100
"""Clients up to which each shares keys with all others; above it does with its neighbours alone."""
FEWEST = 3
"""Clients whose sum hides each from the others: of two, each would subtract its own update."""


def require_secure_sum(
    privacy: Privacy, federation: Federation, *, wire: Wire, simulation: Simulation, cohort: int
) -> None:
    """Do nothing if a run can keep what ``privacy.secure_aggregation: true`` promises.

    Raises:
        ValueError: it cannot; the key, the reason and what to take are named.
    """
    _require_plain_sum(federation)
    _require_nothing_single(privacy, federation)
    _require_carrier(wire, simulation)
    _require_cohort(privacy, cohort=cohort)
    _require_threshold(privacy, cohort=cohort)
    threshold, quorum = privacy.threshold_of(cohort), federation.quorum
    if quorum and quorum < threshold:
        raise ValueError(
            f"federation.quorum is {quorum}, but no sum of fewer than privacy.threshold, "
            f"{threshold}, can be opened: remove it, or raise it"
        )


def _require_plain_sum(federation: Federation) -> None:
    sees = "looks at single updates, but with privacy.secure_aggregation there is their sum alone"
    if federation.facts.personal:
        raise ValueError(
            f"federation.method: {federation.method} keeps factors at their sites, without which "
            "the sum that privacy.secure_aggregation gives means nothing: take freeze-a"
        )
    if not federation.facts.plain_sum:
        raise ValueError(f"federation.method: {federation.method} {sees}: take freeze-a")
    if federation.robust != "none":
        raise ValueError(f"federation.robust: {federation.robust} {sees}: take none")


def _require_nothing_single(privacy: Privacy, federation: Federation) -> None:
    if federation.cohort_sampling == "poisson":
        raise ValueError(
            "federation.cohort_sampling: poisson draws cohorts of any size, but the threshold of "
            "privacy.secure_aggregation is of a size that all know beforehand: take fixed-size"
        )
    if federation.evaluate_every and not privacy.evaluation_noise:
        raise ValueError(
            "an evaluation tells of single sites, which privacy.secure_aggregation hides: set "
            "federation.evaluate_every: 0, or take unit: example with evaluation_noise"
        )


def _require_carrier(wire: Wire, simulation: Simulation) -> None:
    if wire.codec != "fp32":
        raise ValueError(
            f"wire.codec: {wire.codec} rounds each update to a scale of its own, but masks cancel "
            "only in whole numbers of one scale, which privacy.secure_aggregation makes of float32 "
            "itself: remove it, or take fp32"
        )
    if wire.compress:
        raise ValueError(
            "wire.compress finds nothing to compress in what privacy.secure_aggregation masks: set "
            "it to false"
        )
    if simulation.engine == "ray":
        raise ValueError(
            "simulation.engine: ray ends a client's process after each message, and with it the "
            "keys of privacy.secure_aggregation, which are written nowhere: take in-process"
        )


def _require_cohort(privacy: Privacy, *, cohort: int) -> None:
    if cohort < FEWEST:
        raise ValueError(
            f"privacy.secure_aggregation needs a cohort of at least {FEWEST}, for of two clients "
            f"each knows the other's update from the sum, but a cohort has {cohort}: raise "
            "federation.cohort_size or federation.sites"
        )
    if cohort > LARGEST_COMPLETE and privacy.threat_model != "honest-but-curious":
        raise ValueError(
            f"privacy.threat_model: {privacy.threat_model} needs keys between all clients, which "
            f"are made for up to {LARGEST_COMPLETE}, but a cohort has {cohort}: say threat_model: "
            "honest-but-curious, which trusts the aggregator to follow the protocol, or lower "
            "federation.cohort_size"
        )
    if cohort <= LARGEST_COMPLETE and privacy.dropout_rate is not None:
        raise ValueError(
            "privacy.dropout_rate has no effect with a cohort of at most "
            f"{LARGEST_COMPLETE}, where privacy.threshold alone decides: remove it"
        )


def _require_threshold(privacy: Privacy, *, cohort: int) -> None:
    threshold, colluders = privacy.threshold_of(cohort), privacy.colluders_of(cohort)
    if threshold > cohort:
        raise ValueError(
            f"privacy.threshold is {threshold}, but a cohort has {cohort}: take at most {cohort}"
        )
    if colluders >= cohort:
        raise ValueError(
            f"privacy.colluders is {colluders}, but a cohort has {cohort}, of which some must be "
            "honest: lower it"
        )
    if threshold < FEWEST:
        raise ValueError(
            f"privacy.threshold is {threshold}, but of two clients whose sum is opened each knows "
            f"the other's update from it: take {FEWEST} or more"
        )
    if threshold <= colluders:
        raise ValueError(
            f"privacy.threshold is {threshold}, so that {colluders} colluders could open any "
            f"client's masks by themselves: take a threshold of {colluders + 1} or more, or fewer "
            "colluders"
        )
    least = (cohort + colluders) // 2 + 1
    if privacy.threat_model == "malicious-aggregator" and threshold < least:
        helped = f" with {colluders} colluders" if colluders else ""
        fewer = ", fewer colluders," if colluders else ""
        raise ValueError(
            f"privacy.threshold is {threshold}, so that an aggregator that tells some of {cohort} "
            "clients that one of them dropped out, and the others that it did not, could open its "
            f"update{helped}: take a threshold of {least} or more{fewer} or "
            "threat_model: honest-but-curious"
        )
