"""Whether a site is ready: each thing that it needs is tried, and what to do is said."""

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, TypeVar

from cryptography import x509

from fedlora.data.formats import read_dataset
from fedlora.data.public_text import public_examples
from fedlora.errors import FedloraError
from fedlora.gate.evidence.verification import verify_log
from fedlora.privacy.accounting.renyi_filter import RenyiFilter
from fedlora.privacy.ledger import Ledger
from fedlora.publish import Forgetting
from fedlora.runtime.client.configuration import SiteConfiguration, read_site
from fedlora.runtime.client.connection import AHEAD_S, BEHIND_S, reach
from fedlora.runtime.client.enrol import request_of
from fedlora.runtime.client.folder import SiteFolder
from fedlora.runtime.client.isolation_check import isolation_found
from fedlora.runtime.client.peers import read_peers
from fedlora.runtime.client.start import require_enrolled
from fedlora.runtime.enrolment import JoinBundle, state_of
from fedlora.runtime.reports.format import counted, size
from fedlora.runtime.trackers import require_installed
from fedlora.sections import EMBEDDED, Dataset, Source
from fedlora.signing import PublicKey, Signer
from fedlora.training.base_model.files import digest, resolve
from fedlora.training.base_model.placement import device_name, find_device, room_on

_SOON = timedelta(days=30)
_ROOM = 5_000_000_000
"""Bytes of disk that logs, evidence, outbox and caches should find."""

Verdict = Literal["ok", "warning", "failed"]
Answer = tuple[Verdict, str]
Read = TypeVar("Read")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    what: str
    verdict: Verdict
    found: str
    """What there is; if it is not well, what to do."""


def check(folder: SiteFolder) -> Iterator[Finding]:
    """Yield what is found, as it is found; nothing is changed.

    What needs something that is not there is not tried.
    """
    site, found = _opened("configuration", lambda: read_site(folder.configuration))
    yield found
    join, found = _opened("join bundle", lambda: JoinBundle.read(folder.join))
    yield found
    if join is not None:
        yield _tried("keys", lambda: _keys(folder, join))
        yield _tried("aggregator's CA", lambda: _authority(join))
        yield from _aggregator(join)
        yield _tried("enrolment", lambda: _enrolment(folder, join))
        yield _tried("evidence log", lambda: _evidence(folder, join))
        yield _tried("privacy ledger", lambda: _ledger(folder, join))
    yield _tried("disk", lambda: _disk(folder.path))
    if site is not None:
        yield _tried("site's name", lambda: ("ok", require_enrolled(folder, site).site))
        yield _tried("policy", lambda: _policy(site))
        if join is not None:
            yield _tried("peers", lambda: _peers(folder, site))
        for dataset in site.data:
            yield _tried("data", lambda dataset=dataset: _data(dataset))  # type: ignore[misc]  # mypy: lambdas' defaults
        if text := site.public_text:
            yield _tried("public text", lambda: _public(text))
        yield _tried("base model", lambda: _base(site))
        yield _tried("device", lambda: _device(site))
        if site.trackers:
            yield _tried("trackers", lambda: _trackers(site))
        yield _tried("trainer's isolation", lambda: isolation_found(folder, site))


def learned(join: JoinBundle, site: SiteConfiguration | None) -> Iterator[tuple[str, str]]:
    """Yield what the aggregator would learn of this site, each with what it is about."""
    yield "who", f"the name {join.site}, the public keys, and the address that the site calls from"
    yield "when", "when the site is reachable, and how long each round takes it"
    yield "updates", "size, values and norm of each update; without privacy they can tell of rows"
    yield "", "of a recipe with secure_aggregation their sum over a cohort alone, and who is in it"
    if site is not None:
        names = ", ".join(metric.name for metric in site.policy.metrics) or "none"
        yield "metrics", f"by name, within the policy's ranges: {names}; fewer under privacy"
        most = site.policy.bytes
        yield "at most", f"{size(most.per_round)} a round and {size(most.per_day)} a day"
    yield "examples", "how many a round used, unless the recipe protects examples"
    yield "refusals", "that the policy refuses a run, or that a round failed; not why in detail"
    yield "evidence", "how many entries the log has, and their hash"
    yield "never", "rows, file names, paths, errors' texts, the policy, other runs' recipes"


def _opened(what: str, read: Callable[[], Read]) -> tuple[Read | None, Finding]:
    try:
        return read(), Finding(what=what, verdict="ok", found="read")
    except FedloraError as error:
        return None, Finding(what=what, verdict="failed", found=str(error))


def _tried(what: str, look: Callable[[], Answer]) -> Finding:
    try:
        verdict, found = look()
    except FedloraError as error:
        verdict, found = "failed", str(error)
    return Finding(what=what, verdict=verdict, found=found)


def _keys(folder: SiteFolder, join: JoinBundle) -> Answer:
    for path in (folder.credentials, folder.node_key, folder.gate_key):
        if not path.exists():
            return "failed", f"{path} is not there: run fedlora client enroll again"
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            right = "700" if path.is_dir() else "600"
            return "failed", f"{path}: others may open it ({mode:o}): chmod {right} {path}"
        if not os.access(path, os.R_OK):
            return "failed", f"{path} is not yours to read: run this as its owner, or as root"
    return "ok", f"fingerprint {request_of(folder, join.site).fingerprint}"


def _authority(join: JoinBundle) -> Answer:
    end = x509.load_pem_x509_certificate(join.ca_certificate.encode()).not_valid_after_utc
    return _until(end, then="the aggregator's operator must make a new CA and invite anew")


def _aggregator(join: JoinBundle) -> Iterator[Finding]:
    reached, found = _opened("connection", lambda: reach(join))
    if reached is None:
        yield found
        return
    told = f"{join.aggregator} answers"
    if reached.healthy:
        yield Finding(what="connection", verdict="ok", found=told)
    else:
        sick = f"{told}, but its SuperLink does not: its operator should look"
        yield Finding(what="connection", verdict="warning", found=sick)
    then = "the aggregator's operator renews it with fedlora server renew"
    verdict, text = _until(reached.certificate_ends, then=then)
    yield Finding(what="certificate", verdict=verdict, found=text)
    yield _clock(reached.ahead)


def _clock(ahead: float) -> Finding:
    well = -BEHIND_S < ahead < AHEAD_S
    side = "ahead of" if ahead >= 0 else "behind"
    found = f"this clock is {abs(ahead):.0f} s {side} the aggregator's"
    if not well:
        found += f"; at most {AHEAD_S:g} s ahead and {BEHIND_S:g} s behind: set both by NTP"
    return Finding(what="clock", verdict="ok" if well else "failed", found=found)


def _until(end: datetime, *, then: str) -> Answer:
    left = end - datetime.now(UTC)
    verdict: Verdict = "ok" if left > _SOON else "warning" if left > timedelta(0) else "failed"
    return verdict, f"valid until {end:%Y-%m-%d}" + ("" if verdict == "ok" else f": {then}")


def _enrolment(folder: SiteFolder, join: JoinBundle) -> Answer:
    state = state_of(request_of(folder, join.site), join)
    if state == "admitted":
        return "ok", "admitted"
    if state == "waiting":
        return "warning", "waiting: tell the aggregator's operator the fingerprint of your keys"
    return "failed", f"{state}: ask the aggregator's operator to invite the site anew"


def _evidence(folder: SiteFolder, join: JoinBundle) -> Answer:
    if not folder.evidence.exists():
        return "ok", "none yet: the gate makes it at its first start"
    gate, aggregator = Signer.load(folder.gate_key).public, PublicKey.of(join.aggregator_key)
    found = verify_log(folder.evidence, site=join.site, gate=gate, aggregator=aggregator)
    seen = f"{found.receipted} of them receipted by the aggregator"
    return "ok", f"{found.head.count} entries, whole; {seen}"


def _ledger(folder: SiteFolder, join: JoinBundle) -> Answer:
    path = folder.sites / join.site / "ledger.sqlite"
    if not path.exists():
        return "ok", "none yet: the first run with privacy makes it"
    head = Ledger(path, new_filter=RenyiFilter).verify()
    return "ok", f"{counted(head.count, 'row')}, whole"


def _disk(path: Path) -> Answer:
    free = shutil.disk_usage(path).free
    if free < _ROOM:
        return "warning", f"{size(free)} free: have {size(_ROOM)}, or a full disk stops a round"
    return "ok", f"{size(free)} free"


def _policy(site: SiteConfiguration) -> Answer:
    policy, parts = site.policy, list[str]()
    if policy.recipes:
        parts.append(counted(len(policy.recipes), "recipe") + " by digest")
    if bounds := policy.bounds:
        least = bounds.privacy
        unit = f"ε up to {least.max_epsilon:g}" if least.unit != "none" else "no privacy asked for"
        parts.append(f"any recipe within bounds ({unit})")
    parts += [
        "a person says yes to each run" if policy.approval == "required" else "nobody is asked",
        f"at {policy.hours}" if policy.hours else "at any hour",
    ]
    if policy.secure_aggregation.required:
        parts.append("updates leave masked alone")
    if not (policy.recipes or policy.bounds):
        return "warning", "allows no recipe: give policy.recipes or policy.bounds"
    return "ok", ", ".join(parts)


def _peers(folder: SiteFolder, site: SiteConfiguration) -> Answer:
    asked = site.policy.secure_aggregation
    known = len(read_peers(folder).fingerprints)
    if known >= asked.min_cohort:
        return "ok", f"{counted(known, 'site')} pinned, this one among them"
    found = f"{known} of at least {asked.min_cohort} for secure aggregation pinned"
    if asked.required:
        return "failed", f"{found}, this one among them: fedlora client peers add NAME KEY"
    return "ok", f"{found}, which the policy does not require"


def _public(text: Source) -> Answer:
    rows = public_examples(Forgetting.model_validate(text.model_dump()))
    return "ok", f"{text.path}: {counted(len(rows), 'row')}; the loss on it leaves without noise"


def _data(dataset: Dataset) -> Answer:
    rows = read_dataset(dataset)
    return "ok", f"{dataset.path}: {counted(len(rows.examples), 'row')} of format {rows.type}"


def _base(site: SiteConfiguration) -> Answer:
    own = digest(resolve(site.base_model or EMBEDDED, None))
    named = f"{site.base_model or 'the embedded one'}, SHA-256 {own}"
    bounds = site.policy.bounds
    if bounds and own not in [base.digest for base in bounds.base_models]:
        return "warning", f"{named}: policy.bounds.base_models does not have this digest"
    return "ok", named


def _trackers(site: SiteConfiguration) -> Answer:
    require_installed(site.trackers)
    return "ok", f"{', '.join(site.trackers)}: the loss of each step, on this host alone"


def _device(site: SiteConfiguration) -> Answer:
    device = find_device(site.device)
    weights = sum(f.stat().st_size for f in resolve(site.base_model or EMBEDDED, None).iterdir())
    name, free = device_name(device), room_on(device)
    found = f"{name}, {size(free)} of memory free; the base model's files have {size(weights)}"
    if free < weights:
        return "warning", f"{found}: 4-bit weights (adapter: qlora) take a quarter of them"
    return "ok", found
