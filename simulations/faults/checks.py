"""What must hold of a deployment at any time, whatever was done to it."""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors.torch import load_file

from fedlora.adapter import AdapterState
from fedlora.errors import FedloraError
from fedlora.gate.evidence.entries import Released
from fedlora.gate.evidence.verification import Findings, verify_log
from fedlora.privacy.accounting.renyi_filter import RenyiFilter
from fedlora.privacy.ledger import DEFAULT_ACCOUNT, Ledger
from fedlora.runtime.client.folder import SiteFolder
from fedlora.runtime.enrolment import JoinBundle
from fedlora.runtime.run_folder import RunFolder
from fedlora.signing import PublicKey, Signer
from simulations.faults.one_hot import miscounted
from simulations.faults.scene import Scene

_TRIES = 20


def problems(scene: Scene) -> Mapping[str, str]:
    """Return what does not hold: what it is of, and how it is."""
    found: dict[str, str] = {}
    for run in scene.runs:
        found.update(_of_run(run))
    for name, folder in scene.sites.items():
        try:
            findings = verified(SiteFolder(folder))
        except FedloraError as error:
            found[f"evidence of {name}"] = str(error)
            continue
        found.update(_of_releases(name, findings))
        if scene.deployment.recipe.privacy.unit == "example":
            found.update(_of_ledger(name, folder, findings))
    return found


def spent(scene: Scene) -> tuple[int, int]:
    """Return how many rounds the sites answered, and how many charges they have in their ledgers.

    They differ where a crash came between a charge and its answer.
    """
    answered = charged = 0
    for name, folder in scene.sites.items():
        entries = [logged.entry for logged in verified(SiteFolder(folder)).entries]
        answered += len({(e.run, e.round) for e in entries if isinstance(e, Released)})
        charged += len(_ledger(name, folder).rows(DEFAULT_ACCOUNT))
    return answered, charged


def _of_run(run: RunFolder) -> Iterator[tuple[str, str]]:
    for record in run.records():
        for site, reason in {**record["refused"], **record["unmeasured"]}.items():
            yield f"{run.name}, round {record['round']}, {site}", f"refused: {reason}"
    if adapter := _newest(run):
        rounds, state = adapter
        for wrong in miscounted(state, rounds=rounds):
            update, _, value = wrong.partition(": ")
            yield f"{run.name}, {update}, counted", value
    if run.is_published:
        try:
            run.load()
        except FedloraError as error:
            yield f"{run.name}, checkpoint", str(error)


def _newest(run: RunFolder) -> tuple[int, AdapterState] | None:
    """Return the rounds behind the newest checkpoint and its adapter, while others write."""
    for _ in range(_TRIES):
        paths = sorted(run.path.glob("checkpoints/round-*"))
        if not paths:
            return None
        try:
            values = load_file(paths[-1] / "state.safetensors")["adapter"]
        except FileNotFoundError:  # it was the oldest
            time.sleep(0.05)
            continue
        number = int(paths[-1].name.removeprefix("round-"))
        return number, AdapterState(spec=run.spec(), values=values)
    return None


def verified(site: SiteFolder) -> Findings:
    """Walk a site's evidence log, as ``fedlora client evidence verify`` does.

    Raises:
        EvidenceError: it is not whole.
    """
    bundle = JoinBundle.read(site.join)
    return verify_log(
        site.evidence,
        site=bundle.site,
        gate=Signer.load(site.gate_key).public,
        aggregator=PublicKey.of(bundle.aggregator_key),
    )


def _of_releases(name: str, findings: Findings) -> Iterator[tuple[str, str]]:
    """Name the answers that were given twice, and not the same."""
    payloads: dict[tuple[str, int, str], set[str | None]] = defaultdict(set)
    for entry in (logged.entry for logged in findings.entries):
        if isinstance(entry, Released):
            payloads[entry.run, entry.round, entry.purpose].add(entry.payload)
    for (run, number, purpose), digests in payloads.items():
        if len(digests) > 1:
            yield f"{name}, {run}, {purpose} {number}", f"{len(digests)} different answers left"


def _of_ledger(name: str, folder: Path, findings: Findings) -> Iterator[tuple[str, str]]:
    """Name the updates that left uncharged."""
    ledger = _ledger(name, folder)
    ledger.verify()
    charged = {(row.run, row.number) for row in ledger.rows(DEFAULT_ACCOUNT)}
    for entry in (logged.entry for logged in findings.entries):
        if isinstance(entry, Released) and (entry.run, entry.round) not in charged:
            yield f"{name}, {entry.run}, round {entry.round}", "left and was not charged"


def _ledger(name: str, folder: Path) -> Ledger:
    return Ledger(SiteFolder(folder).sites / name / "ledger.sqlite", new_filter=RenyiFilter)
