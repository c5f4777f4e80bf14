"""The folder of an aggregator: its configuration, keys, sites and runs.

::

    aggregator.yaml  names and ports: the operator's word
    ca/              what the sites trust
        ca.crt
        ca.key           signs server certificates; may be kept off the host
    tls/
        front.{crt,key}      what the sites see
        superlink.{crt,key}  Flower's SuperLink, on loopback
    keys/
        aggregator.key   Ed25519, PEM: signs receipts; ``.pub``, in base64, is beside it
        publisher.key    Ed25519, PEM: signs releases; off the host, runs do not publish themselves
    store/           releases that runs publish
    registry.yaml    for those who read releases: where the registry is, and whom to trust
    callers.yaml     who may call the registry
    bundles/         a join bundle for each invited site, to be handed over
    sites/           who may take part, a file a site
    runs/            run folders, and receipts of the sites' ledgers
    state/           SuperLink's database and secret, Flower's home, receipts of evidence
    logs/

Its owner alone can enter it; private keys and secrets are for their owner alone, too.
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ServerFolder:
    """Paths of an aggregator."""

    path: Path

    @property
    def configuration(self) -> Path:
        """The operator's file."""
        return self.path / "aggregator.yaml"

    @property
    def ca_certificate(self) -> Path:
        """The certificate that every join bundle carries."""
        return self.path / "ca" / "ca.crt"

    @property
    def ca_key(self) -> Path:
        """What signs server certificates: EC P-384, PEM; not there once it is off the host."""
        return self.path / "ca" / "ca.key"

    @property
    def front_certificate(self) -> Path:
        """What the sites see; its key is beside it."""
        return self.path / "tls" / "front.crt"

    @property
    def superlink_certificate(self) -> Path:
        """What SuperLink shows on loopback; its key is beside it."""
        return self.path / "tls" / "superlink.crt"

    @property
    def aggregator_key(self) -> Path:
        """What signs receipts: Ed25519, PEM; ``.pub``, in base64, is beside it."""
        return self.path / "keys" / "aggregator.key"

    @property
    def publisher_key(self) -> Path:
        """What signs releases: Ed25519, PEM; not there once it is off the host."""
        return self.path / "keys" / "publisher.key"

    @property
    def store(self) -> Path:
        """The releases that runs publish."""
        return self.path / "store"

    @property
    def registry(self) -> Path:
        """What readers of releases need: address, authority and publisher."""
        return self.path / "registry.yaml"

    @property
    def callers(self) -> Path:
        """Who may call the registry."""
        return self.path / "callers.yaml"

    @property
    def bundles(self) -> Path:
        """Join bundles to be handed over."""
        return self.path / "bundles"

    @property
    def directory(self) -> Path:
        """Who may take part, a file a site."""
        return self.path / "sites"

    @property
    def runs(self) -> Path:
        """Run folders."""
        return self.path / "runs"

    @property
    def state(self) -> Path:
        """What Flower's processes keep."""
        return self.path / "state"

    @property
    def evidence_receipts(self) -> Path:
        """How far each site's evidence log was seen to come, a file a site."""
        return self.state / "evidence"

    @property
    def ledger_receipts(self) -> Path:
        """How far each site's privacy ledger was seen to come, where ``Receipts.of`` keeps it."""
        return self.runs / "receipts"

    @property
    def superlink_database(self) -> Path:
        """SuperLink's SQLite file: nodes, runs and messages."""
        return self.state / "superlink.sqlite"

    @property
    def superexec_secret(self) -> Path:
        """32 random bytes by which SuperLink knows our executor."""
        return self.state / "superexec.secret"

    @property
    def flower_home(self) -> Path:
        """What Flower takes for its home folder."""
        return self.state / "flwr"

    @property
    def logs(self) -> Path:
        """What the processes say."""
        return self.path / "logs"

    def bundle(self, site: str) -> Path:
        """Where a site's join bundle waits to be handed over."""
        return self.bundles / f"{site}.join.yaml"
