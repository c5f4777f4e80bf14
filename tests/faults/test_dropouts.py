"""Losses and lies at all stages of secure sums, as ``campaigns dropouts`` tries them."""

import json

from fedlora.privacy.secure_aggregation.participant import Participant
from simulations.campaigns import dropouts
from simulations.secure_sums import Pinned


def result_of(capsys, *, trials):
    dropouts.run(trials=trials, seed=1)
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_sums_are_right_or_there_are_none(capsys):
    """In each trial, and no honest member's vector is opened."""
    result = result_of(capsys, trials=25)
    assert result == {"name": "dropouts", "trials": 25, "survived": 25, "seed": 1, "holds": True}


def test_the_campaign_sees_that_nobody_is_pinned(capsys, monkeypatch):
    """An aggregator that plays all others then subtracts them."""
    monkeypatch.setattr(Pinned, "__call__", lambda *_: None)
    monkeypatch.setattr(dropouts, "_lie", lambda _, cohort: dropouts._sybils(cohort))
    assert not result_of(capsys, trials=20)["holds"]


def test_the_campaign_sees_that_signatures_do_not_count(capsys, monkeypatch):
    """An aggregator that tells each of other survivors then has all it needs of one."""
    monkeypatch.setattr(Participant, "_require_signed", lambda *_: None)
    lie = "other survivors to each"
    monkeypatch.setattr(dropouts, "LIES", {lie: dropouts.LIES[lie]})
    assert not result_of(capsys, trials=20)["holds"]
