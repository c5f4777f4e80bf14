"""A site's own file of peers: who this site is to them, and who they are to it."""

from fedlora import atomic
from fedlora.errors import PolicyError
from fedlora.gate.peers import Peers
from fedlora.runtime.client.folder import SiteFolder
from fedlora.runtime.enrolment import JoinBundle
from fedlora.signing import PublicKey


def own(folder: SiteFolder) -> tuple[str, PublicKey]:
    """Return the site's own name and its gate's key, which its peers pin.

    Raises:
        EnrolmentError: the site has not enrolled.
    """
    public = folder.gate_key.with_name(f"{folder.gate_key.name}.pub")
    return JoinBundle.read(folder.join).site, PublicKey.read(public)


def read_peers(folder: SiteFolder) -> Peers:
    """Return the sites that are pinned; this one is first among them.

    Raises:
        EnrolmentError: the site has not enrolled.
        PolicyError: the file cannot be read, or is wrong: it, the line and the key are named.
    """
    site, key = own(folder)
    try:
        text = folder.peers.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Peers.of({site: key.fingerprint})
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyError(f"{folder.peers}: the peers cannot be read ({error}).") from None
    pinned = Peers.from_yaml(text, source=str(folder.peers)).fingerprints
    if site in pinned or key.fingerprint in pinned.values():
        raise PolicyError(
            f"{folder.peers}: it names this site itself, by its name {site} or by its key, which "
            "would count twice: remove it there."
        )
    return Peers.of({site: key.fingerprint, **pinned})


def write_peers(folder: SiteFolder, peers: Peers) -> None:
    """Keep the peers besides this site.

    Raises:
        EnrolmentError: the site has not enrolled.
        StorageError: the file cannot be written.
    """
    site, _ = own(folder)
    atomic.write_file(folder.peers, peers.removing(site).to_yaml())
