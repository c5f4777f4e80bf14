"""Captured traffic adds up, or it is said what does not."""

import pytest

from fedlora.errors import EvidenceError
from simulations.benchmarks.traffic import Category, Exchange, explain, show
from tests.evidence import Site, configured, received, refused, released

EXCHANGES = [
    Exchange(path="/v1/fleet/activate-node", request=50, response=20),
    Exchange(path="/v1/fleet/pull-messages", request=30, response=400),
    Exchange(path="/v1/fleet/pull-object", request=40, response=2100),
    Exchange(path="/v1/fleet/push-messages", request=500, response=10),
    Exchange(path="/v1/fleet/push-object", request=1100, response=5),
    Exchange(path="/v1/fleet/send-node-heartbeat", request=7, response=3),
]
UP, DOWN = 1727, 2538


@pytest.fixture
def entries(tmp_path) -> list:
    """One round: 2,000 bytes came, 1,000 left."""
    log = Site(tmp_path).log()
    for entry in (configured(log), received(log, 1), released(log, 1), refused(2)):
        log.append(entry)
    return log.entries()


def test_every_byte_is_in_one_category(entries, capsys):
    """Payloads, what is around them, control, and the rest of the wire: to the byte."""
    categories = explain(EXCHANGES, entries, up=UP + 300, down=DOWN + 400)
    assert [(each.up, each.down) for each in categories] == [
        (1000, 2000),
        (600, 500),
        (127, 38),
        (300, 400),
    ]
    show(categories)
    assert capsys.readouterr().out.splitlines()[-1].split() == [
        "on",
        "the",
        "wire",
        "2,027",
        "2,938",
    ]


@pytest.mark.parametrize(
    ("exchanges", "up", "down", "says"),
    [
        (EXCHANGES[:4], UP, DOWN, "Flower's messages around them: -500 bytes up"),
        (EXCHANGES[3:], UP, DOWN, "Flower's messages around them: .* and -2,000 down"),
        (EXCHANGES, UP - 1, DOWN, "HTTP headers and TLS: -1 bytes up"),
        (EXCHANGES, UP, DOWN - 1, "HTTP headers and TLS: 0 bytes up and -1 down"),
    ],
)
def test_what_does_not_add_up_is_an_error(entries, exchanges, up, down, says):
    """More on the log than was carried, or more carried than was on the wire."""
    with pytest.raises(EvidenceError, match=says):
        explain(exchanges, entries, up=up, down=down)


def test_a_site_that_was_only_polled_has_no_payload():
    """All is control and what carries it."""
    polls = [Exchange(path="/v1/fleet/send-node-heartbeat", request=7, response=3)] * 3
    first, *_ = explain(polls, [], up=100, down=100)
    assert first == Category(name=first.name, up=0, down=0)
