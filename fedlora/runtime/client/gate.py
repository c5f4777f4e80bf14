"""The gate's process: it takes the aggregator's instructions from the SuperNode, one by one.

It is the only process of a site that has the site's keys, and the only one that sees both the
network's bytes and the trainer's. It never looks at the app bundle that comes with an instruction.
"""

import time

import httpx

from fedlora import __version__
from fedlora.document import write_yaml
from fedlora.gate.chain import AdapterChain
from fedlora.gate.evidence.entries import Configured
from fedlora.gate.evidence.log import EvidenceLog
from fedlora.gate.evidence.signing import PublicKey, Signer
from fedlora.runtime import log
from fedlora.runtime.carriers.supernode import next_instruction
from fedlora.runtime.carriers.tasks import Endpoint
from fedlora.runtime.client.approvals import Approvals
from fedlora.runtime.client.configuration import read_site
from fedlora.runtime.client.folder import SiteFolder
from fedlora.runtime.client.gatekeeper import Gatekeeper, Trainer
from fedlora.runtime.enrolment import JoinBundle

_POLL = 0.2
"""Seconds between looks for an instruction."""


def gatekeeper_of(folder: SiteFolder, *, trainer: Trainer) -> Gatekeeper:
    """Return the gatekeeper of a site's folder, with its start on record.

    Raises:
        PolicyError: there is no policy.
        EnrolmentError: the site has not enrolled.
        EvidenceError: the evidence log is not whole.
        StorageError: it cannot be written.
    """
    configuration = read_site(folder.configuration)
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
        policy_digest=policy,
    )


def work(gatekeeper: Gatekeeper, endpoint: Endpoint) -> None:
    """Answer instructions for ever.

    Raises:
        EvidenceError: the log is not whole.
        StorageError: the log cannot be written.
    """
    reachable = True
    while True:
        try:
            with next_instruction(endpoint) as instruction:
                if not reachable:
                    log.say("the SuperNode is there again")
                reachable = True
                if instruction is not None:
                    instruction.reply(gatekeeper.answer(instruction.message))
                    continue
        except httpx.HTTPError as error:
            # Gone, or it gave the task up; what was answered is in the outbox, if asked again.
            if reachable:
                log.warn("the SuperNode is not there", reason=repr(error))
            reachable = False
        time.sleep(_POLL)
