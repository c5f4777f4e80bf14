"""A run's curves: each point once in each tracker, and no trouble of one is the run's."""

import logging
import math

import pytest

from fedlora.runtime.trackers.curves import Curves, open_curves


class Listed:
    """A tracker that keeps its curve in a list, and fails where it is told to."""

    def __init__(self, curve: list, *, fails: str = "") -> None:
        self.curve, self.fails = curve, fails

    def begin(self, known: str) -> str:
        self._do("begin", known)
        return known or "number-7"

    def log(self, step, metrics) -> None:
        self._do("log", step, metrics)

    def end(self, *, complete: bool) -> None:
        self._do("end", complete)

    def _do(self, method: str, *what: object) -> None:
        if method == self.fails:
            raise ConnectionError("http://me:secret@host/api did not answer")
        self.curve.append((method, *what))


def points(curve: list) -> list[int]:
    return [step for method, step, *_ in curve if method == "log"]


def test_a_stopped_run_goes_on_where_each_tracker_is(tmp_path):
    """What one has it is not given again, though it is told all that there is."""
    curve: list = []
    for steps in (range(3), range(5)):
        with open_curves({"listed": Listed(curve)}, tmp_path / "memory") as curves:
            for step in steps:
                curves.log(step, {"loss": 1.0})
    assert points(curve) == [0, 1, 2, 3, 4]
    assert [each for each in curve if each[0] == "begin"] == [("begin", ""), ("begin", "number-7")]


def test_whether_the_run_was_stopped_is_told(tmp_path):
    """The block's own error comes out, and the tracker is closed all the same."""
    curve: list = []
    with (
        pytest.raises(KeyboardInterrupt),
        open_curves({"listed": Listed(curve)}, tmp_path / "memory"),
    ):
        raise KeyboardInterrupt
    with open_curves({"listed": Listed(curve)}, tmp_path / "memory"):
        pass
    assert [each for each in curve if each[0] == "end"] == [("end", False), ("end", True)]


@pytest.mark.parametrize("fails", ["begin", "log", "end"])
def test_one_that_fails_is_left_out_and_said_once(tmp_path, caplog, fails):
    """Others go on; resumed, it gets what it lacks; no password of its address is logged."""
    good, bad = [], []
    trackers = {"bad": Listed(bad, fails=fails), "good": Listed(good)}
    with (
        caplog.at_level(logging.WARNING, "fedlora"),
        open_curves(trackers, tmp_path / "memory") as curves,
    ):
        for step in range(3):
            curves.log(step, {"loss": 1.0})
    assert points(good) == [0, 1, 2]
    [said] = caplog.messages
    assert "The tracker bad failed, and the run goes on without it: ConnectionError" in said
    assert "http://host/api" in said
    with open_curves({"bad": Listed(bad)}, tmp_path / "memory") as curves:
        for step in range(3):
            curves.log(step, {"loss": 1.0})
    assert points(bad) == [0, 1, 2]


def test_what_is_not_finite_is_no_point(tmp_path):
    """A step without examples has no loss; trackers differ in what they make of that."""
    curve: list = []
    curves = Curves({"listed": Listed(curve)}, tmp_path / "memory")
    curves.begin()
    curves.log(1, {"loss": math.nan, "seconds": 2.0})
    assert curve[-1] == ("log", 1, {"seconds": 2.0})


@pytest.mark.parametrize("text", ["", "[]", '{"listed": {"run": "x"', '{"listed": {"other": 1}}'])
def test_a_damaged_memory_stops_nothing(tmp_path, text):
    """It holds nothing that the run needs: the tracker begins anew."""
    (tmp_path / "memory").write_text(text)
    curve: list = []
    with open_curves({"listed": Listed(curve)}, tmp_path / "memory") as curves:
        curves.log(0, {"loss": 1.0})
    assert points(curve) == [0]
