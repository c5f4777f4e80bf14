"""How a site's client is: its connection, what waits, and what it has let out."""

import math
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedlora.errors import FedloraError
from fedlora.gate.evidence.entries import Logged
from fedlora.gate.evidence.log import EvidenceLog
from fedlora.privacy.accounting.renyi_filter import RenyiFilter
from fedlora.privacy.ledger import Ledger
from fedlora.runtime.client.approvals import Approvals
from fedlora.runtime.client.enrol import request_of
from fedlora.runtime.client.folder import SiteFolder
from fedlora.runtime.client.supernode import REFUSED, TURNED_AWAY
from fedlora.runtime.enrolment import JoinBundle, state_of
from fedlora.runtime.processes.service_state import ServiceState, Supervision
from fedlora.runtime.processes.supervisor import services_file
from fedlora.signing import Signer

_LAST = 5
"""Entries of the evidence log that are shown."""
_LOOKED_AT = 20_000
"""Bytes of the end of the SuperNode's log."""
_BEGUN = "Starting Flower SuperNode"
_WELL = re.compile(r"Connection successful|SuperNode ID: |Received successfully|Sent successfully")
_CUT = re.compile(r"Connection attempt failed")
"""How a SuperNode logs its connection (``flwr/supercore/retry/http_retry.py``)."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """What a site's folder tells of its client, and the aggregator if it answers."""

    site: str
    aggregator: str
    connection: str
    enrolment: str
    waiting: Sequence[str]
    """Runs that wait for the operator's answer."""
    spent: Sequence[tuple[str, str]]
    """Each account of the privacy ledger, with what was spent of it."""
    evidence: Sequence[Logged]
    """The newest entries, the newest last."""


def status(folder: SiteFolder) -> Status:
    """Return how a site's client is. Nothing is changed, and no process is needed.

    Raises:
        EnrolmentError: the site has not enrolled.
        EvidenceError: the evidence log is not whole.
        BudgetError: the privacy ledger is not whole.
    """
    join = JoinBundle.read(folder.join)
    requests = Approvals(folder.approvals).requests()
    return Status(
        site=join.site,
        aggregator=join.aggregator,
        connection=_connection(folder),
        enrolment=_enrolment(folder, join),
        waiting=[request.run for request, state in requests if state == "waits"],
        spent=[*_spent(folder.sites / join.site / "ledger.sqlite")],
        evidence=_evidence(folder, join.site),
    )


def _connection(folder: SiteFolder) -> str:
    """Return what the SuperNode's log says of its connection."""
    told = Supervision.read(services_file(folder.path))
    services = told.services if told is not None and told.supervisor.alive else ()
    node = next((each for each in services if each.name == "supernode"), None)
    if node is None or node.state == "stopped":
        return "none: the SuperNode does not run"
    if node.state == "waiting":
        return _refusal(node)
    for line in reversed(_last_lines(folder.logs / "supernode.log")):
        if _WELL.search(line):
            return "connected"
        if _CUT.search(line):
            return "cut: the aggregator does not answer; the SuperNode tries again by itself"
        if _BEGUN in line:
            break
    return "connecting"


def _refusal(node: ServiceState) -> str:
    """Return why a SuperNode that waits to be started again has ended."""
    seconds = max(0, round((node.retry_at or 0) - time.time()))
    said = "\n".join(node.last_words)
    reason = f"the SuperNode ended ({node.last_exit})"
    if REFUSED in said:
        reason = "SuperLink still believes the old SuperNode is alive, for a minute at most"
    elif TURNED_AWAY in said:
        reason = (
            "the aggregator refuses this site's key: it is not admitted, or the clocks differ; see "
            "fedlora client check"
        )
    return f"none: {reason}; trying again in {seconds} s"


def _last_lines(log: Path) -> Sequence[str]:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _LOOKED_AT))
            return file.read().decode(errors="replace").splitlines()
    except OSError:
        return ()


def _enrolment(folder: SiteFolder, join: JoinBundle) -> str:
    try:
        return state_of(request_of(folder, join.site), join)
    except FedloraError as error:
        return f"not known: {error}"


def _spent(path: Path) -> Iterator[tuple[str, str]]:
    balances = Ledger(path, new_filter=RenyiFilter).balances() if path.exists() else {}
    for account, balance in balances.items():
        cost = RenyiFilter(epsilon=math.inf, delta=balance.delta).epsilon_of(balance.spent)
        limit = "without limit" if balance.epsilon is None else f"of {balance.epsilon:g}"
        yield account, f"ε {cost:.3g} {limit}, at δ {balance.delta:g}"


def _evidence(folder: SiteFolder, site: str) -> Sequence[Logged]:
    if not folder.evidence.exists():
        return ()
    log = EvidenceLog(folder.evidence, site=site, signer=Signer.load(folder.gate_key))
    return log.entries()[-_LAST:]
