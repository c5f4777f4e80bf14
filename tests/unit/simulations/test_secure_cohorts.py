"""The benchmark of large cohorts: what is summed is right, and all is counted."""

import json

import numpy as np
import pytest

from fedlora.errors import RunError
from simulations.benchmarks import secure_cohorts
from simulations.benchmarks.measure import report
from simulations.benchmarks.replies import adapter_spec
from simulations.benchmarks.secure_cohorts import LIMITS, MEMORY, attempted, measured
from simulations.benchmarks.secure_round import SecureRound

SMALL = adapter_spec(layers=1, width=64)


@pytest.mark.slow
def test_every_cohort_is_measured(capsys):
    """By itself and in the grid, with a client in twenty lost; each has sent its vector."""
    bars = measured(SMALL, (101, 110))
    assert [bar.name for bar in bars] == ["client s / log n, 110 / 101 clients", MEMORY]
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    rows = [line for line in lines if line[:1] in (["101"], ["110"])]
    assert len(rows) == 3
    vector = 4 * SecureRound(110, SMALL).size / 1e6
    for row in rows:
        assert 0.9 * vector < float(row[-3]) < 2 * vector
    report("secure_cohorts", bars, LIMITS)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["name"] == "secure_cohorts"


def test_a_wrong_sum_is_noticed(monkeypatch):
    """A benchmark of something else would say nothing."""
    cohort = SecureRound(101, SMALL)
    monkeypatch.setattr(secure_cohorts, "is_lost", lambda site: site in {"site-3", "site-7"})
    sites = cohort.recipe.site_names
    attempted(cohort.terms, sites=sites, size=10)
    monkeypatch.setattr(secure_cohorts, "_repeated", lambda v: iter([np.zeros_like(v[0])] * 101))
    with pytest.raises(RunError, match="99 clients is not the sum"):
        attempted(cohort.terms, sites=sites, size=10)
