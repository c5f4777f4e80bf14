"""The campaign of kills around the ledger's writes."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_a_short_campaign_holds():
    """Its last line says so, in the form that all campaigns have."""
    command = [sys.executable, "-m", "simulations.campaigns", "ledger", "--trials", "4"]
    campaign = subprocess.run(
        [*command, "--seed", "7"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert json.loads(campaign.stdout.splitlines()[-1]) == {
        "name": "ledger",
        "trials": 4,
        "survived": 4,
        "seed": 7,
        "holds": True,
    }


def test_a_worker_starts_light():
    """No import of the ledger brings torch, so that a trial is cheap and a command line instant."""
    code = "import sys, fedlora.privacy.ledger.ledger; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
