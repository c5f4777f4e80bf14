"""The folder of a site's client: its configuration, keys, and what it must never lose.

::

    site.yaml        data, device, trainer and policy: the operator's word
    peers.yaml       the other sites' keys, as fedlora client peers keeps them
    credentials/     for the gate's user alone
        join.yaml        the bundle that the site enrolled with, without its token
        node.key         EC P-384 in OpenSSH's format: who the site's SuperNode is
        node.key.pub
        gate.key         Ed25519, PEM: signs the evidence's heads
        gate.key.pub
    gate/            for the gate's user alone
        evidence/        the log of all that came in and went out
        sites/           by site: its ledger of privacy, its outbox and error feedback by run
        chain/           the adapters seen, by run
        approvals/       the operator's yes, by run
    trainer/         what the trainer may write: personal factors, caches
    run/             sockets and the state of the processes, made anew at each start
    logs/
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SiteFolder:
    """Paths of a site's client."""

    path: Path

    @property
    def configuration(self) -> Path:
        """The operator's file."""
        return self.path / "site.yaml"

    @property
    def peers(self) -> Path:
        """The other sites, each with the fingerprint of its gate's key."""
        return self.path / "peers.yaml"

    @property
    def credentials(self) -> Path:
        """Keys and certificates."""
        return self.path / "credentials"

    @property
    def join(self) -> Path:
        """The bundle that the site enrolled with, without its token."""
        return self.credentials / "join.yaml"

    @property
    def node_key(self) -> Path:
        """Who the site's SuperNode is: EC P-384 in OpenSSH's format; ``.pub`` is beside it."""
        return self.credentials / "node.key"

    @property
    def gate_key(self) -> Path:
        """What signs the evidence's heads: Ed25519, PEM; ``.pub``, in base64, is beside it."""
        return self.credentials / "gate.key"

    @property
    def gate(self) -> Path:
        """What the gate alone may read and write."""
        return self.path / "gate"

    @property
    def evidence(self) -> Path:
        """The log of all that came in and went out."""
        return self.gate / "evidence"

    @property
    def sites(self) -> Path:
        """What ``FEDLORA_SITES`` names to the gate: ledger, outbox and error feedback."""
        return self.gate / "sites"

    @property
    def chain(self) -> Path:
        """The adapters seen, by run."""
        return self.gate / "chain"

    @property
    def approvals(self) -> Path:
        """What the operator was asked and answered, by run."""
        return self.gate / "approvals"

    @property
    def trainer(self) -> Path:
        """What the trainer may write."""
        return self.path / "trainer"

    @property
    def run(self) -> Path:
        """Sockets and the state of the processes, made anew at each start."""
        return self.path / "run"

    @property
    def trainer_socket(self) -> Path:
        """Where the trainer listens and the gate asks."""
        return self.run / "trainer.sock"

    @property
    def logs(self) -> Path:
        """What the processes say."""
        return self.path / "logs"
