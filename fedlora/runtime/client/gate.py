"""The gate's process: it takes the aggregator's instructions from the SuperNode, one by one.

It is the only process of a site that has the site's keys, and the only one that sees both the
network's bytes and the trainer's. It never looks at the app bundle that comes with an instruction.
"""

import logging
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

import httpx
from flwr.app import Message

from fedlora import __version__
from fedlora.document import write_yaml
from fedlora.errors import FedloraError, StorageError
from fedlora.gate.chain import AdapterChain
from fedlora.gate.evidence.entries import Configured
from fedlora.gate.evidence.log import EvidenceLog
from fedlora.runtime.carriers.supernode import next_instruction
from fedlora.runtime.carriers.tasks import Endpoint
from fedlora.runtime.client.approvals import Approvals
from fedlora.runtime.client.configuration import SiteConfiguration, read_site
from fedlora.runtime.client.folder import SiteFolder
from fedlora.runtime.client.gatekeeper import Gatekeeper, Trainer
from fedlora.runtime.client.identity import GateIdentity
from fedlora.runtime.client.isolation import Isolation, compared, require
from fedlora.runtime.client.link import TrainerLink, TrainerLostError
from fedlora.runtime.client.probes import Place, Report
from fedlora.runtime.client.supernode import address_file, secret_file
from fedlora.runtime.enrolment import JoinBundle
from fedlora.runtime.processes import log
from fedlora.runtime.site.budget import charged
from fedlora.runtime.site.memory import FOLDER
from fedlora.signing import PublicKey, Signer

_POLL = 0.2
"""Seconds between looks for an instruction."""

_RESTART = 1.0
"""Seconds before a trainer that was lost is asked again, or a disk that was full written to."""


def gatekeeper_of(
    folder: SiteFolder, configuration: SiteConfiguration, *, trainer: Trainer
) -> Gatekeeper:
    """Return the gatekeeper of a site's folder, with its start on record.

    Raises:
        EnrolmentError: the site has not enrolled.
        EvidenceError: the evidence log is not whole.
        StorageError: it cannot be written.
    """
    bundle = JoinBundle.read(folder.join)
    signer = Signer.load(folder.gate_key)
    evidence = EvidenceLog(folder.evidence, site=configuration.site, signer=signer)
    policy = evidence.keep(write_yaml(configuration.policy.model_dump(mode="json")))
    evidence.append(
        Configured(
            site=configuration.site,
            version=__version__,
            policy=policy,
            isolation=configuration.trainer.isolation,
        )
    )
    return Gatekeeper(
        configuration=configuration,
        trainer=trainer,
        evidence=evidence,
        aggregator=PublicKey.of(bundle.aggregator_key),
        approvals=Approvals(folder.approvals),
        chain=AdapterChain(folder.chain),
        identity=GateIdentity(folder=folder, signer=signer, policy=configuration.policy),
        policy_digest=policy,
    )


def work(gatekeeper: Gatekeeper, endpoint: Endpoint) -> None:
    """Answer instructions for ever.

    Raises:
        EvidenceError: the log is not whole.
        RunError: the SuperNode did not take an answer: both are to be started anew.
    """
    reachable = True
    while True:
        try:
            with next_instruction(endpoint) as instruction:
                if not reachable:
                    log.say("the SuperNode is there again")
                reachable = True
                if instruction is not None:
                    instruction.reply(_answered(gatekeeper, instruction.message))
                    continue
        except httpx.HTTPError as error:
            # Gone, or it gave the task up; what was answered is in the outbox, if asked again.
            if reachable:
                log.warn("the SuperNode is not there", reason=repr(error))
            reachable = False
        except FedloraError:
            raise
        except Exception:  # whatever Flower could not read: the next may be sound
            logging.getLogger(__name__).exception("What came cannot be read.")
        time.sleep(_POLL)


def _answered(gatekeeper: Gatekeeper, message: Message) -> Message:
    """Return the answer to an instruction, once the disk has room to log it."""
    full = False
    while True:
        try:
            return gatekeeper.answer(message)
        except StorageError as error:
            if not full:
                log.warn("nothing is answered until the disk has room", reason=str(error))
            full = True
            time.sleep(_RESTART)


class PatientTrainer:
    """A trainer that is asked again while its supervisor starts it anew."""

    def __init__(self, link: TrainerLink, *, timeout: float) -> None:
        self._link, self._timeout = link, timeout

    def ask(self, message: Message, *, recipe: str, site: str) -> Message:
        deadline = time.monotonic() + self._timeout
        while True:
            left = deadline - time.monotonic()
            try:
                return self._link.ask(message, recipe=recipe, site=site, timeout=left)
            except TrainerLostError as error:
                if time.monotonic() + _RESTART > deadline:
                    raise
                log.warn("the trainer was lost; it is asked again", reason=str(error))
                time.sleep(_RESTART)


def main() -> None:
    """Keep the gate of the site whose folder the command line names, until SIGTERM."""
    log.start("gate")
    signal.signal(signal.SIGTERM, _stop)
    folder = SiteFolder(Path(sys.argv[1]))
    os.environ[FOLDER] = str(folder.sites)
    configuration = read_site(folder.configuration)
    endpoint = Endpoint(
        address=address_file(folder).read_text(encoding="ascii").strip(),
        secret=secret_file(folder).read_bytes(),
    )
    link = TrainerLink(
        folder.trainer_socket,
        greet=lambda report: _greet(report, configuration.trainer.isolation),
        charge=charged,
    )
    trainer = PatientTrainer(link, timeout=configuration.trainer.timeout)
    work(gatekeeper_of(folder, configuration, trainer=trainer), endpoint)


def _greet(report: Report, isolation: Isolation) -> None:
    """Let a trainer be asked that is as isolated as the operator wants it."""
    require(compared(report, gate=Place.here(), user=os.getuid()), isolation)


def _stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - signal's interface
    raise SystemExit(0)


if __name__ == "__main__":
    main()
