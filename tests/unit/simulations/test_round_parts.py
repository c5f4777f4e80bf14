"""The parts of a deployed round, from logs as the processes write them."""

import pytest

from simulations.benchmarks.round_parts import PARTS, parts


def supernode(*moves: tuple[float, int, str]) -> list[str]:
    """Return a SuperNode's log: at a second, in a round, what it says."""
    lines = []
    for second, number, said in moves:
        if said.startswith(("Receiving", "Sending")):
            lines.append(f"{at(second)} INFO :      [RUN 7, ROUND {number}]")
        lines.append(f"{at(second)} INFO :      {said}")
    return lines


def message(start: float, number: int, kind: str, *, until: float) -> list[tuple[float, int, str]]:
    """Return what a SuperNode says of an instruction that it gets at ``start``."""
    return [
        (start, number, f"Receiving: {kind} message (ID: 00)"),
        (start + 0.1, number, "Received successfully"),
        (until - 0.2, number, f"Sending: {kind} message (ID: 01)"),
        (until, number, "Sent successfully"),
    ]


def trainer(*asked: tuple[float, int]) -> list[str]:
    """Return a trainer's log, which takes a tenth of a second for each question."""
    return [
        f'{at(moment)} {{"time": "{at(moment)}", "event": "{event}", "round": {number}}}'
        for second, number in asked
        for event, moment in (("asked", second), ("answered", second + 0.1))
    ]


def at(second: float) -> str:
    return f"2026-01-01T00:00:{second:06.3f}Z"


def test_the_parts_are_those_of_the_logs_and_add_up_to_a_round():
    """Two sites, one of which keeps the other waiting; a round lasts ten seconds."""
    quick = supernode(
        *message(0, 0, "evaluate", until=0.9),
        *message(1, 1, "train", until=2),
        *message(5, 1, "evaluate", until=6),
        *message(11, 2, "train", until=12),
    )
    slow = supernode(
        *message(0, 0, "evaluate", until=0.9),
        *message(1, 1, "train", until=4),
        *message(5, 1, "evaluate", until=8),
        *message(11, 2, "train", until=14),
    )
    said = trainer((0.3, 0), (1.3, 1), (5.3, 1), (11.3, 2))
    found = parts([(quick, said), (slow, said)])
    assert tuple(found) == PARTS
    assert sum(found.values()) == pytest.approx(10)
    expected = (0.2, 0.4, 0.2, 0.8 + 2, 0.4, 2, 1 + 3)
    assert tuple(found.values()) == pytest.approx(expected, abs=1e-3)


def test_between_two_runs_there_is_no_round():
    """The time from one run's end to the next one's begin is no part of either."""
    one = supernode(*message(1, 1, "train", until=2), *message(3, 1, "evaluate", until=4))
    two = supernode(*message(31, 1, "train", until=32), *message(33, 1, "evaluate", until=34))
    three = supernode(*message(41, 2, "train", until=42))
    other = [line.replace("RUN 7", "RUN 8") for line in (*two, *three)]
    said = trainer((1.3, 1), (3.3, 1), (31.3, 1), (33.3, 1), (41.3, 2))
    found = parts([([*one, *other], said)])
    assert sum(found.values()) == pytest.approx(2 + 8)
