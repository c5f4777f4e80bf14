"""What a caller may ask is bounded, whoever else asks."""

import pytest

from fedlora.release.registry.allowance import Allowance
from fedlora.release.registry.limits import Limits
from fedlora.release.registry.refused import Refused


def test_a_bucket_holds_a_burst_and_fills_up_again() -> None:
    """As many calls as the burst at once, then as many a second as the rate."""
    now = [0.0]
    allowance = Allowance(Limits(rate=2, burst=3), clock=lambda: now[0])
    for _ in range(3):
        allowance.take("a")
    with pytest.raises(Refused, match="More than 2 calls a second"):
        allowance.take("a")

    now[0] = 1.0
    allowance.take("a")
    allowance.take("a")
    with pytest.raises(Refused):
        allowance.take("a")


def test_a_long_pause_earns_no_more_than_a_burst() -> None:
    """The bucket does not overflow."""
    now = [0.0]
    allowance = Allowance(Limits(rate=2, burst=3), clock=lambda: now[0])
    allowance.take("a")
    now[0] = 1e6
    for _ in range(3):
        allowance.take("a")
    with pytest.raises(Refused):
        allowance.take("a")


def test_one_caller_takes_nothing_from_another() -> None:
    """Each has a bucket and places of its own."""
    allowance = Allowance(Limits(burst=1, calls_each=1), clock=lambda: 0.0)
    allowance.take("a")
    allowance.take("b")
    with allowance.place("a"), allowance.place("b"):
        place = allowance.place("a")
        with pytest.raises(Refused, match="1 calls at once"):
            place.__enter__()
    with allowance.place("a"):
        pass


def test_the_log_has_once_a_minute_who_asks_too_often() -> None:
    """With how often that was, so that nobody fills the log; each caller for itself."""
    now = [0.0]
    allowance = Allowance(Limits(rate=1e-9, burst=1), clock=lambda: now[0])

    def refused(caller: str) -> int:
        with pytest.raises(Refused) as caught:
            allowance.take(caller)
        return caught.value.times

    allowance.take("a")
    allowance.take("b")
    assert [refused("a") for _ in range(3)] == [1, 0, 0]
    now[0] = 59.0
    assert [refused("a"), refused("b")] == [0, 1]
    now[0] = 60.0
    assert [refused("a") for _ in range(2)] == [4, 0]


def test_what_is_remembered_of_callers_is_bounded() -> None:
    """Strangers with many addresses do not fill the memory."""
    allowance = Allowance(Limits(), clock=lambda: 0.0)
    for number in range(10_100):
        allowance.take(f"host {number}")

    assert len(allowance._buckets) == 10_000
