"""The benchmark of a training step: the loops do the same, and each is measured."""

import time
from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig

from simulations.benchmarks.measure import Bar
from simulations.benchmarks.training_step import LIMITS, WORK, measured, written
from simulations.benchmarks.turns import Turns, in_turn

TINY = LlamaConfig(
    vocab_size=2048,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_each_loop_is_timed_and_weighed(tmp_path, monkeypatch):
    """All three reach the same loss, or nothing would come back; each bar of the issue is there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    bars = measured(replace(WORK, base_model=written(TINY, tmp_path), rows=2, tokens=16), n=3)
    assert {bar.name for bar in bars} == LIMITS.keys() | {
        "step, ours / plain",
        "memory, ours / plain",
    }
    assert [bar.n for bar in bars] == [3, 3, 1, 1]
    assert all(isinstance(bar, Bar) and bar.ours > 0 and bar.peer > 0 for bar in bars)
    assert {bar.name for bar in bars if bar.holds is not None} == set(LIMITS)


def test_loops_take_their_steps_in_turn():
    """One after another, though one takes longer; the first step of each is left out."""
    said: list[str] = []

    def loop(name: str, seconds: float, turns: Turns) -> None:
        for _ in range(4):
            with turns.step(name):
                time.sleep(seconds)
                said.append(name)

    taken = in_turn({"a": lambda t: loop("a", 0.0, t), "b": lambda t: loop("b", 0.02, t)})
    assert said == ["a", "b"] * 4
    assert [len(each) for each in taken.values()] == [3, 3]
    assert min(taken["b"]) >= 0.02


def test_a_loop_that_fails_is_not_waited_for():
    """Its error comes out; the other ends first."""
    steps: list[int] = []

    def fail(turns: Turns) -> None:
        with turns.step("a"):
            raise ZeroDivisionError

    def go_on(turns: Turns) -> None:
        for number in range(3):
            with turns.step("b"):
                steps.append(number)

    with pytest.raises(ZeroDivisionError):
        in_turn({"a": fail, "b": go_on})
    assert steps == [0, 1, 2]
