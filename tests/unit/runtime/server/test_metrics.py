"""What Prometheus reads is in its format, and says what the files say."""

import json
import re

import pytest

from fedlora.runtime.server.configuration import Configuration
from fedlora.runtime.server.installation import install
from fedlora.runtime.server.metrics import Metric, Traffic, exposition

LINE = re.compile(r'[a-z_]+(\{([a-z]+="([^"\\\n]|\\[\\"n])*",?)+\})? -?[0-9.e+-]+|# (HELP|TYPE) .+')


@pytest.fixture(name="folder")
def _folder(tmp_path):
    return install(tmp_path / "agg", Configuration.of(["a"]), sites=["bank", "ministry"])


def test_every_line_is_in_the_format(folder):
    """Also with a run's rounds, counts, and names that need escapes."""
    run = folder.runs / "demo-1"
    run.mkdir()
    records = [
        {"round": 1, "seconds": 2.5, "refused": {"bank": "NaN"}},
        {"round": 2, "seconds": 1.5, "refused": {"bank": "late"}},
    ]
    (run / "rounds.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    traffic = Traffic()
    traffic.requests["other", 404] += 3
    text = exposition(folder, traffic, nodes={})
    assert text.endswith("\n")
    assert all(LINE.fullmatch(line) for line in text.splitlines())
    said = set(text.splitlines())
    assert {
        'fedlora_front_requests_total{path="other",status="404"} 3',
        'fedlora_sites{state="invited"} 2',
        "fedlora_superlink_up 1",
        'fedlora_run_rounds{run="demo-1"} 2',
        'fedlora_run_last_round_seconds{run="demo-1"} 1.5',
        'fedlora_run_refused_updates_total{run="demo-1",site="bank"} 2',
    } <= said


def test_labels_are_escaped():
    """A name cannot end its label and begin a metric of its own."""
    metric = Metric(name="x", kind="gauge", help="y", values={(("site", 'a"\n\\'),): 1})
    assert list(metric.lines())[-1] == r'x{site="a\"\n\\"} 1'


def test_a_superlink_that_is_down_is_told(folder):
    """Nothing is said of nodes then."""
    text = exposition(folder, Traffic(), nodes=None)
    assert "fedlora_superlink_up 0" in text
    assert "fedlora_site_online" not in text
