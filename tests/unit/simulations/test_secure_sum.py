"""The benchmark of secure sums: both sides come to the sum, and what is compared is alike."""

import json

import pytest
import torch

from fedlora.errors import RunError
from simulations.benchmarks import secagg_plus, secure_sum
from simulations.benchmarks.measure import report
from simulations.benchmarks.secure_sum import LIMITS, measured, require_the_mean


def test_both_come_to_the_plain_mean():
    """With all clients, and without one that has shared its secrets."""
    require_the_mean(1_000)


def test_a_wrong_mean_is_noticed(monkeypatch):
    """A peer that did less than its work would be no peer."""
    monkeypatch.setattr(secagg_plus.Attempt, "mean", lambda _self, _parts: torch.zeros(1_000))
    with pytest.raises(RunError, match="8 of 8 clients is not the sum"):
        require_the_mean(1_000)


def test_every_bar_is_measured(capsys):
    """The bytes beside the vector do not depend on its length, so that they are printed once."""
    told = []
    for size in (1_000, 5_000):
        bars = measured(torch.randn(size) * 1e-3, n=1)
        assert LIMITS.keys() <= {bar.name for bar in bars}
        [unmasked] = [bar for bar in bars if bar.name == "bytes / unmasked"]
        assert unmasked.ratio == 1
        assert unmasked.ours == 4 * (size + 1) / 1e6
        told.append(capsys.readouterr().out.partition("MB a client sends ")[2])
    assert told[0] == told[1] != ""
    report("secure_sum", bars, secure_sum.LIMITS)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["name"] == "secure_sum"
