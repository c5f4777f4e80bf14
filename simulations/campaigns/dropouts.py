"""Members that vanish or lie at any stage of a secure sum, and aggregators that lie to them.

In each trial three to twenty members, in one of twenty-five a sparse graph of more than a hundred,
play an attempt of random vectors and terms. Some are lost at some stage, answer noise, break a seal
or reveal wrong shares; or the aggregator tells them of different survivors or shares, of other
keys, or what was sealed in another attempt, with as many colluders as the terms stand. The sum must
be that of the survivors, or there is none; with losses alone there must be one as long as the terms
say so. And whatever happened, of what was revealed and of what colluders hold, no sum may be opened
but that of all honest survivors: if the aggregator lied, no sum of fewer than t - |C| honest ones.
"""

import json
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from fedlora.errors import SecureSumError
from fedlora.privacy.secure_aggregation.graph import derived
from fedlora.privacy.secure_aggregation.terms import Terms
from fedlora.secure_sum.v1 import secure_sum_pb2 as pb
from simulations.campaigns.lying_aggregator import LIES
from simulations.secure_sum_lies import sites_of
from simulations.secure_sum_spy import Spy
from simulations.secure_sums import (
    STAGES,
    Change,
    Cohort,
    Vector,
    losing,
    new_signer,
    new_vectors,
    plain_sum,
)

_SPARSE_EACH = 25
"""Trials of which one has a sparse graph."""
_SIZE = 5
"""Values of a vector."""
_ENDS = "summed", "abandoned", "lied to"


@dataclass(frozen=True)
class _Trial:
    """What is played, and what must come of it."""

    kind: str
    cohort: Cohort
    colluders: int
    play: Callable[[], Vector | None]
    must_sum: bool = False
    honest_aggregator: bool = True


def run(*, trials: int, seed: int) -> None:
    """Run the trials and print what became of them."""
    generator = random.Random(seed)
    ends, problems = Counter[tuple[str, str]](), list[str]()
    for number in range(trials):
        trial = _drawn(generator, sparse=number % _SPARSE_EACH == _SPARSE_EACH - 1)
        end, problem = _end(trial)
        ends[trial.kind, end] += 1
        if problem:
            problems.append(f"trial {number}, {trial.kind}: {problem}")
    print(f"{'':32}" + "".join(f"{end:>12}" for end in _ENDS))
    for kind in sorted({kind for kind, _ in ends}):
        print(f"{kind:32}" + "".join(f"{ends[kind, end]:12}" for end in _ENDS))
    for problem in problems:
        print(problem)
    survived = trials - len(problems)
    result = {"name": "dropouts", "trials": trials, "survived": survived, "seed": seed}
    print(json.dumps(result | {"holds": survived == trials and trials > 0}))


def _end(trial: _Trial) -> tuple[str, str]:
    """Return how an attempt ended, and what must not have been; nothing if all is well."""
    cohort, total = trial.cohort, None
    try:
        total = trial.play()
    except SecureSumError as error:
        if len(str(error)) < 20:
            return "abandoned", f"the error says nothing: {error}"
        if trial.must_sum:
            return "abandoned", f"there is no sum: {error}"
    except Exception as error:  # noqa: BLE001 - a crash is what the campaign looks for
        return "abandoned", f"it crashed: {error!r}"
    end = "lied to" if not trial.honest_aggregator else "abandoned" if total is None else "summed"
    survivors = cohort.collector.survivors
    if total is not None and not np.array_equal(total, plain_sum(cohort.vectors, survivors)):
        return end, "the sum is wrong"
    colluders = sites_of(cohort, trial.colluders)[2]
    honest = frozenset(survivors) - set(colluders)
    fewest = max(2, cohort.terms.threshold - trial.colluders)
    for sites, vector in Spy(cohort=cohort, colluders=colluders).sums().items():
        allowed = sites == honest if trial.honest_aggregator else len(sites) >= fewest
        if not allowed:
            right = np.array_equal(vector, plain_sum(cohort.vectors, sites))
            return end, f"the sum of {len(sites)} alone is open ({'' if right else 'not '}rightly)"
    return end, ""


def _drawn(generator: random.Random, *, sparse: bool) -> _Trial:
    terms = _sparse_terms(generator) if sparse else _terms(generator)
    numbers = np.random.default_rng(generator.randrange(2**32))
    cohort = Cohort(new_vectors(terms.members, size=_SIZE, generator=numbers), terms)
    graph = "sparse graph" if sparse else "complete graph"
    if generator.random() < 0.3:
        return _losses(generator, cohort, f"{graph}: losses")
    if not terms.signed or generator.random() < 0.4:
        return _bad_members(generator, cohort, f"{graph}: bad members")
    return _lie(generator, cohort) if generator.random() < 0.9 else _sybils(cohort)


def _terms(generator: random.Random) -> Terms:
    members, signed = generator.randint(3, 20), generator.random() < 0.7
    least = max(3, members // 2 + 1 if signed else 3)
    threshold = least if generator.random() < 0.5 else generator.randint(least, members)
    stands = min(threshold - 2, 2 * threshold - members - 1 if signed else threshold)
    return Terms(
        members=members,
        threshold=threshold,
        fewest=threshold,
        colluders=stands if generator.random() < 0.5 else generator.randint(0, stands),
        signed=signed,
    )


def _sparse_terms(generator: random.Random) -> Terms:
    members = generator.randint(101, 150)
    dropped, corrupt = members // 20, generator.randint(0, members // 20)
    degree, threshold = derived(members - dropped, corrupt=corrupt, dropped=dropped)
    return Terms(
        members=members,
        threshold=threshold,
        fewest=members - dropped,
        colluders=min(corrupt, threshold - 1),
        signed=False,
        degree=degree,
        most_lost=dropped,
    )


def _losses(generator: random.Random, cohort: Cohort, kind: str) -> _Trial:
    """Lose members at any stage: up to as many as the terms stand, or any number."""
    terms, sites = cohort.terms, sorted(cohort.vectors)
    stood = terms.members - terms.threshold if terms.most_lost is None else terms.most_lost
    count = generator.randint(0, stood if generator.random() < 0.7 else len(sites))
    lost = {site: generator.choice(STAGES) for site in generator.sample(sites, count)}
    cohort.change = losing(lost)
    return _Trial(kind, cohort, terms.colluders, cohort.total, must_sum=count <= stood)


def _bad_members(generator: random.Random, cohort: Cohort, kind: str) -> _Trial:
    """Have some members break what they answer in a stage."""
    sites = sorted(cohort.vectors)
    most = cohort.terms.members - cohort.terms.threshold if cohort.terms.degree is None else 6
    bad = generator.sample(sites, generator.randint(0, max(1, most)))
    deeds = {(generator.choice(STAGES), site): generator.choice(DEEDS) for site in bad}
    cohort.change = _doing(deeds, generator)
    return _Trial(kind, cohort, cohort.terms.colluders, cohort.total)


def _doing(
    deeds: Mapping[tuple[str, str], Callable[..., bytes]], generator: random.Random
) -> Change:
    def change(stage: str, site: str, answer: bytes) -> bytes:
        deed = deeds.get((stage, site))
        return deed(stage, answer, generator) if deed else answer

    return change


def _noise(stage: str, answer: bytes, generator: random.Random) -> bytes:
    """Return bytes of another length: a vector as long as it must be is what its sender has."""
    size = generator.randrange(2 * len(answer) + 1)
    return generator.randbytes(size + (stage == "mask" and size == len(answer)))


def _cut(_stage: str, answer: bytes, generator: random.Random) -> bytes:
    return answer[: generator.randrange(len(answer))]


def _wrong(stage: str, answer: bytes, generator: random.Random) -> bytes:
    """Return an answer that is as it should be, but for what no aggregator can see by itself."""
    match stage:
        case "share":
            shares = pb.Shares.FromString(answer)
            for sealed in generator.sample(list(shares.sealed), 1):
                sealed.text = generator.randbytes(len(sealed.text))
            return shares.SerializeToString()
        case "reveal":
            revealed = pb.Revealed.FromString(answer)
            for share in (*revealed.seeds, *revealed.mask_keys):
                share.share = bytes(1) + generator.randbytes(32)
            return revealed.SerializeToString()
        case "mask":
            return _cut(stage, answer, generator)
    flipped = bytearray(answer)
    flipped[generator.randrange(len(answer))] ^= 1 << generator.randrange(8)
    return bytes(flipped)


DEEDS = (_noise, _cut, _wrong)


def _lie(generator: random.Random, cohort: Cohort) -> _Trial:
    """Have the aggregator tell members what is not so; what it adds up then is its own affair."""
    kind, colluders = generator.choice(sorted(LIES)), cohort.terms.colluders

    def play() -> None:
        LIES[kind](cohort, colluders, generator)

    return _Trial(f"lies: {kind}", cohort, colluders, play, honest_aggregator=False)


def _sybils(cohort: Cohort) -> _Trial:
    """Have the aggregator play all members but one, by keys of its own."""
    victim = min(cohort.vectors)
    signers = {site: new_signer() for site in cohort.vectors} | {victim: cohort.signers[victim]}
    played = Cohort(cohort.vectors, cohort.terms, signers=signers)
    played.participants[victim] = cohort.participants[victim]  # it has pinned the real ones
    others = len(signers) - 1
    return _Trial("lies: all but one", played, others, played.total, honest_aggregator=False)
