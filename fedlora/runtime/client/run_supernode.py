"""Flower's stock SuperNode, run to its end.

``python -m fedlora.runtime.client.run_supernode DIR …``: what follows DIR is given to
``flower-supernode``. Three things are seen to around it:

- A SuperNode whose connection fails for good lets its loop end, but its runtime API keeps the
  process: it would look alive and never work again. Here the process ends with the loop.
- SuperLink takes a SuperNode that was killed for alive for another minute, and refuses its
  successor (exit code 305). A process that died on this very host says goodbye belatedly, by the
  call that it would have made itself. A copy of the folder on another host cannot: two of one site
  at once must stay impossible.
- A message that a SuperNode could not take or send, as when SuperLink's disk is full, it drops, and
  nobody is told; of one whose run ended while it came, a part stays, and from then on each answer
  waits until the next question. Here the process ends: from one that is connected anew the
  aggregator knows to ask again.
"""

import json
import logging
import os
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.proto.fleet_pb2 import DeactivateNodeRequest
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supernode.cli.flower_supernode import flower_supernode
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from fedlora import atomic
from fedlora.errors import StorageError
from fedlora.runtime.client.folder import SiteFolder
from fedlora.runtime.enrolment import JoinBundle
from fedlora.runtime.processes.service_state import Process

_GREETING = "SuperNode ID: %s"
"""How a SuperNode logs the number that SuperLink gave its key."""
_DROPPED = (
    "Failed to receive message %s: %s",
    "Failed to send message %s: %s",
    "Run ID %s is not in `RUNNING` status. Ignoring message %s.",
)
"""How it logs that it dropped a message."""


class _Greeting(logging.Handler):
    """Notes which node this process is, once SuperLink has let it in."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        if record.msg == _GREETING and isinstance(record.args, tuple):
            note = {"node": record.args[0], "process": asdict(Process.of(os.getpid()))}
            with suppress(StorageError):  # then a successor has to wait
                atomic.write_file(self._path, json.dumps(note))


class _Drops(logging.Handler):
    """Ends this process when it has dropped a message."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.msg in _DROPPED:
            os._exit(1)  # it holds nothing else


def _say_goodbye_for(path: Path, folder: SiteFolder) -> None:
    """Tell SuperLink that a process of this host that was killed has gone."""
    try:
        note = json.loads(path.read_bytes())
        node, process = int(note["node"]), Process(**note["process"])
        key = load_ssh_private_key(folder.node_key.read_bytes(), None)
    except (OSError, ValueError, KeyError, TypeError):
        return
    gone = process.boot == Process.of(os.getpid()).boot and not process.alive
    if not gone or not isinstance(key, ec.EllipticCurvePrivateKey):
        return
    join = JoinBundle.read(folder.join)
    signed = NodeAuthHttpInterceptor(key, key.public_key())
    versioned = RuntimeVersionHttpInterceptor(component_name="SuperNode")
    with (
        suppress(httpx.HTTPError, RuntimeError),  # then it has to wait
        FleetHttpClient.from_server_address(
            join.aggregator,
            insecure=False,
            root_certificates=join.ca_certificate.encode(),
            interceptors=[versioned, signed],
        ) as client,
    ):
        client.DeactivateNode(DeactivateNodeRequest(node_id=node))


def main(folder: SiteFolder) -> None:
    """Run the SuperNode until it ends, and end with it."""
    note = folder.run / "node.json"
    _say_goodbye_for(note, folder)
    logging.getLogger("flwr").addHandler(_Greeting(note))
    logging.getLogger("flwr").addHandler(_Drops())
    flower_supernode()
    os._exit(1)  # not sys.exit: the runtime API's thread would keep the process


if __name__ == "__main__":
    main(SiteFolder(Path(sys.argv.pop(1))))
