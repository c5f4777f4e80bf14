"""Where the time of a deployed round goes, read from the logs of its sites."""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from statistics import mean

_RUN = re.compile(r"\[RUN (\d+), ROUND (\d+)\]")
_MOVE = re.compile(r"(Receiving|Sending): (train|evaluate) message|(Received|Sent) successfully")

PULL = "instruction: from SuperLink to SuperNode"
BEFORE = "gate: its poll, policy, bounds, evidence"
TRAINER = "trainer"
AFTER = "gate: inspection, encoding, evidence; SuperNode looks every 0.5 s"
PUSH = "answer: from SuperNode to SuperLink"
OTHERS = "the other sites"
AGGREGATOR = "aggregator: polls, check, fold, checkpoint; SuperNode waits or sleeps"
PARTS = (PULL, BEFORE, TRAINER, AFTER, PUSH, OTHERS, AGGREGATOR)

Phase = tuple[str, int, int]
"""Run, round, and 0 for training or 1 for evaluation: in the order in which they are."""


@dataclass
class _Message:
    """When a site did what with an instruction, in seconds since the epoch."""

    times: dict[str, float] = field(default_factory=dict)


def parts(sites: Iterable[tuple[Sequence[str], Sequence[str]]]) -> Mapping[str, float]:
    """Return the mean seconds of each part of a round, in training and evaluation together.

    Args:
        sites: of each, the lines of its SuperNode's log, and of its trainer's
            (``simulations.trivial_trainer``).

    Guarantees:
        - The parts add up to the mean time of a round: from when its instructions come to a site
          until those of the next round do.
    """
    read = [_messages(supernode, trainer) for supernode, trainer in sites]
    phases = sorted(set[Phase]().union(*read))
    found: dict[tuple[str, int], list[float]] = defaultdict(list)
    for phase, after in pairwise(phases):
        if phase[0] != after[0]:
            continue
        there = [(site[phase].times, site[after].times) for site in read]
        last = max(times["Sent"] for times, _ in there)
        for times, then in there:
            for name, seconds in _of_message(times, last=last, then=then["Receiving"]):
                found[name, phase[2]].append(seconds)
    return {name: mean(found[name, 0]) + mean(found[name, 1]) for name in PARTS}


def _of_message(
    times: Mapping[str, float], *, last: float, then: float
) -> Iterator[tuple[str, float]]:
    marks = [times[name] for name in ("Receiving", "Received", "asked", "answered", "Sending")]
    marks += [times["Sent"], last, then]
    for name, (before, after) in zip(PARTS, pairwise(marks), strict=True):
        yield name, after - before


def _messages(supernode: Sequence[str], trainer: Sequence[str]) -> Mapping[Phase, _Message]:
    """Return what a site did, but for the evaluation before the first round."""
    messages: dict[Phase, _Message] = defaultdict(_Message)
    run, kind = ("", 0), ""
    for line in supernode:
        if known := _RUN.search(line):
            run = (known[1], int(known[2]))
        elif (move := _MOVE.search(line)) and run[1]:
            kind = move[2] or kind
            messages[(*run, int(kind == "evaluate"))].times[move[1] or move[3]] = _time(line)
    _add(messages, trainer)
    return messages


def _add(messages: Mapping[Phase, _Message], trainer: Sequence[str]) -> None:
    """Add what the trainer says, which knows no runs: its n-th question is the n-th message."""
    said = [json.loads(line[line.index("{") :]) for line in trainer if '"round"' in line]
    trained = [each for each in said if each["round"]]
    asked, answered = trained[::2], trained[1::2]
    ordered = sorted(messages.values(), key=lambda message: message.times["Receiving"])
    for message, question, answer in zip(ordered, asked, answered, strict=True):
        message.times["asked"] = datetime.fromisoformat(question["time"]).timestamp()
        message.times["answered"] = datetime.fromisoformat(answer["time"]).timestamp()


def _time(line: str) -> float:
    return datetime.fromisoformat(line.split(" ", 1)[0]).timestamp()


def show(found: Mapping[str, float]) -> None:
    """Print the parts and their sum."""
    width = max(map(len, found))
    print("\nWhere our round's time goes, in seconds, mean of all sites and rounds:\n")
    for name, seconds in found.items():
        print(f"{name:{width}}  {seconds:7.3f}")
    print(f"{'together':{width}}  {sum(found.values()):7.3f}\n")
