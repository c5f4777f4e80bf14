"""Who a deployed site is in secure sums: its gate's key, pinned peers, and its policy."""

from collections.abc import Collection
from dataclasses import dataclass

from fedlora.gate.policy import Policy
from fedlora.runtime.client.folder import SiteFolder
from fedlora.runtime.client.peers import read_peers
from fedlora.signing import PublicKey, Signer


@dataclass(frozen=True, kw_only=True)
class GateIdentity:
    """Signs with the gate's key, and knows peers by what the operator has pinned, as of now."""

    folder: SiteFolder
    signer: Signer
    policy: Policy

    def identify(self, site: str, key: PublicKey) -> None:
        """Do nothing if a peer is pinned to that key.

        Raises:
            PeerError: it is not.
            PolicyError: the file of peers cannot be read, or is wrong.
        """
        read_peers(self.folder).require(site, key)

    def admit(self, members: Collection[str], last: Collection[str]) -> None:
        """Do nothing if the policy lets the site be summed with exactly these.

        Raises:
            PolicyError: it does not.
        """
        self.policy.require_roster(members, last)
