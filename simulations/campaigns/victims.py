"""What the campaign ``download`` kills: a reader and a publisher, each a process of its own.

::

    python -m simulations.campaigns.victims read ADDRESS KEY HOME BYTES
    python -m simulations.campaigns.victims publish TARGET KEY DRAFT MANIFEST

The reader kills itself once it has so many bytes of files, and otherwise says how many it got. The
publisher says that it begins; its target is a registry's address or a store's folder.
"""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from fedlora.release.manifest import Manifest
from fedlora.release.publisher import Publisher
from fedlora.release.pull import Puller
from fedlora.release.registry.client import RegistryClient
from fedlora.release.seen import SEEN, Seen
from fedlora.release.store import Store
from fedlora.signing import PublicKey, Signer

PIECE = 2**16
"""Bytes that the reader takes at a time, so that its end may be anywhere but in the last."""


class Mortal(RegistryClient):
    """A client that ends its process after a number of bytes."""

    most = -1
    got = 0

    def read(self, release: str, file: str, *, offset: int = 0) -> Iterator[bytes]:
        for chunk in super().read(release, file, offset=offset):
            for start in range(0, len(chunk), PIECE):
                piece = chunk[start : start + PIECE]
                self.got += len(piece)
                yield piece
                if 0 <= self.most <= self.got:
                    os.kill(os.getpid(), signal.SIGKILL)


def read(address: str, key: str, *rest: str) -> None:
    """Pull the newest release."""
    home, most = rest
    public = PublicKey.of(key)
    with Mortal(address, key=public) as client:
        client.most = int(most)
        release = Puller(client, public, home=Path(home)).pull("demo", into=Path(home) / "demo")
        print(client.got, release.id)


def publish(target: str, key: str, *rest: str) -> None:
    """Publish a draft."""
    draft, manifest = rest
    signer = Signer.load(Path(key))
    what = Manifest.from_json(Path(manifest).read_bytes(), source=manifest)
    folder = Path(target)
    where = (
        Store(folder, key=signer.public)
        if folder.is_dir()
        else RegistryClient(target, key=signer.public)
    )
    print("begins", flush=True)
    seen = Seen(Path(key).parent / SEEN)
    print(Publisher(where, signer, seen=seen).publish(Path(draft), what).id)


if __name__ == "__main__":
    {"read": read, "publish": publish}[sys.argv[1]](*sys.argv[2:])
