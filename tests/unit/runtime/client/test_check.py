"""What check finds is what would go wrong later."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE

from fedlora.runtime.client import check
from fedlora.runtime.client.connection import AHEAD_S, BEHIND_S
from fedlora.runtime.client.enrol import _make_node_key
from fedlora.runtime.client.folder import SiteFolder
from fedlora.runtime.client.status import _refusal
from fedlora.runtime.enrolment import JoinBundle
from fedlora.runtime.processes.service_state import ServiceState
from fedlora.signing import new_key


@pytest.mark.parametrize(
    ("ahead", "verdict"), [(0, "ok"), (4, "ok"), (6, "failed"), (-300, "ok"), (-306, "failed")]
)
def test_the_clock_may_differ_as_far_as_flower_lets_it(ahead: float, verdict: str) -> None:
    """Beyond, SuperLink takes each of the site's requests for a replay."""
    assert (AHEAD_S, BEHIND_S) == (
        SYSTEM_TIME_TOLERANCE,
        TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE,
    )
    assert check._clock(ahead).verdict == verdict


@pytest.mark.parametrize(("days", "verdict"), [(31, "ok"), (29, "warning"), (-1, "failed")])
def test_a_certificate_is_told_before_it_ends(days: int, verdict: str) -> None:
    """A month before there is time to renew it."""
    end = datetime.now(UTC) + timedelta(days=days, minutes=1)

    assert check._until(end, then="renew it")[0] == verdict


def test_keys_that_others_can_read_are_no_secret(tmp_path: Path) -> None:
    """The command that mends it is told."""
    folder = SiteFolder(tmp_path)
    folder.credentials.mkdir(mode=0o700)
    _make_node_key(folder.node_key)
    new_key(folder.gate_key)
    join = JoinBundle.model_construct(site="north")

    assert check._keys(folder, join)[0] == "ok"
    folder.node_key.chmod(0o640)
    verdict, said = check._keys(folder, join)
    assert verdict == "failed"
    assert f"chmod 600 {folder.node_key}" in said


def test_a_key_that_is_missing_is_not_made_by_checking(tmp_path: Path) -> None:
    """It would be another site's to the aggregator."""
    folder = SiteFolder(tmp_path)
    folder.credentials.mkdir(mode=0o700)

    assert check._keys(folder, JoinBundle.model_construct(site="north"))[0] == "failed"
    assert list(folder.credentials.iterdir()) == []


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("[code: 2004] Failed to activate SuperNode.", "still believes the old SuperNode is alive"),
        ("INFO : SuperNode terminated gracefully.", "refuses this site's key"),
        ("Segmentation fault", "the SuperNode ended (killed by SIGSEGV)"),
    ],
)
def test_status_says_why_the_supernode_waits(said: str, told: str) -> None:
    """And when it is tried again."""
    node = ServiceState(
        name="supernode",
        state="waiting",
        retry_at=datetime.now(UTC).timestamp() + 30,
        last_exit="killed by SIGSEGV",
        last_words=(said,),
    )

    assert told in _refusal(node)
    assert "trying again in 30 s" in _refusal(node)
