"""The campaign that kills readers, publishers and registries, in small."""

import json

import pytest

from simulations.campaigns import download


@pytest.mark.slow
def test_kills_leave_nothing_half(capsys: pytest.CaptureFixture[str]) -> None:
    """One trial of each kind and more; the whole campaign has 70."""
    download.run(trials=7, seed=7)

    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert facts == {"name": "download", "trials": 7, "survived": 7, "seed": 7, "holds": True}
