"""The aggregator's side of a deployed site's evidence: it checks heads, and gives receipts."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from flwr.app import RecordDict

from fedlora.errors import WireError
from fedlora.gate.evidence.statements import Receipt, SignedHead
from fedlora.runtime import records
from fedlora.runtime.aggregator.receipts import Receipts
from fedlora.signing import PublicKey, Signer


class EvidenceReceipts:
    """The newest signed head of each site's evidence log, and the receipts of it.

    A site without a gate key, as in a simulation, has no evidence: nothing is done for it.

    Guarantees:
        - As ``Receipts``; what is kept has the site's signature, and so proves what it said.

    Args:
        folder: where the heads are kept, one small file a site.
        signer: the aggregator's key.
        gates: gives the key of each site's gate, as of now: sites come and go while a run goes on.
    """

    def __init__(
        self, folder: Path, *, signer: Signer, gates: Callable[[], Mapping[str, PublicKey]]
    ) -> None:
        self._heads = Receipts(folder, log="evidence log", form=SignedHead)
        self._signer = signer
        self._gates = gates

    def sent_to(self, sites: Iterable[str]) -> Mapping[str, Receipt]:
        """Return a receipt for each site that has a gate key, and remember that it was sent.

        Raises:
            StorageError: one cannot be read.
        """
        gates = self._gates()
        heads = self._heads.sent_to(site for site in sites if site in gates)
        return {
            site: Receipt.sign(self._signer, count=head.count, hash=head.hash, site=site)
            for site, head in heads.items()
        }

    def take(self, site: str, content: RecordDict) -> None:
        """Keep the head that came with a site's answer to the last instruction.

        Raises:
            WireError: there is none, it is not signed by the site's gate, or it is older than the
                one that was sent, or another.
            StorageError: it cannot be written.
        """
        gate = self._gates().get(site)
        if gate is None:
            return
        head = records.signed_head_of(content)
        if head.site != site or not head.signed_by(gate):
            raise WireError(
                f"{site} did not sign how far its evidence log has come with the key of the gate "
                f"that was admitted, {gate.fingerprint}."
            )
        self._heads.take(site, head)
