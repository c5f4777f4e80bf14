"""What the aggregator asks of its SuperLink: to know a site's key, and to start and stop runs.

SuperLink's control API checks no account, so it is reached on loopback alone.
"""

import hashlib
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self, TypeVar

import httpx
from cryptography.hazmat.primitives import serialization
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.error import FlowerError
from flwr.supercore.fab import Fab

from fedlora.errors import EnrolmentError, RunError
from fedlora.runtime.server.configuration import Configuration
from fedlora.runtime.server.folder import ServerFolder

Answer = TypeVar("Answer")

_UNREGISTERED = "unregistered"
_MANY = 1000
"""Runs that are listed: more than an aggregator has in years."""


class Control:
    """A connection to the SuperLink of an aggregator; a context manager."""

    def __init__(self, folder: ServerFolder) -> None:
        """Raises: RunError: the folder's configuration or certificate is missing or wrong."""
        self._address = Configuration.read(folder.configuration).superlink_address
        self._client = ControlHttpClient.from_server_address(
            self._address,
            insecure=False,
            root_certificates=folder.ca_certificate.read_bytes(),
            interceptors=[],
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client.close()

    def register(self, node_key: str) -> int:
        """Let SuperLink know a site's key, and return its node id; a known key keeps its own.

        Args:
            node_key: EC P-384 public key in OpenSSH's format.

        Raises:
            EnrolmentError: the key was unregistered before; SuperLink never takes it again.
            RunError: SuperLink does not answer.
        """
        key = serialization.load_ssh_public_key(node_key.encode()).public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        for node in self._nodes():
            if node.public_key == key and node.status == _UNREGISTERED:
                raise EnrolmentError(
                    "SuperLink has seen this node key before and it was revoked, which is for "
                    "good. Invite the site anew; it must make new keys."
                )
            if node.public_key == key:
                return node.node_id
        request = RegisterNodeRequest(public_key=key)
        return self._ask(lambda: self._client.RegisterNode(request)).node_id

    def unregister(self, node_id: int) -> None:
        """Make SuperLink refuse a node from now on; one that it does not know is refused anyway.

        Raises:
            RunError: SuperLink does not answer.
        """
        known = {node.node_id for node in self._nodes() if node.status != _UNREGISTERED}
        if node_id in known:
            request = UnregisterNodeRequest(node_id=node_id)
            self._ask(lambda: self._client.UnregisterNode(request))

    def nodes(self) -> Mapping[int, str]:
        """Return the status of each node: ``registered``, ``online``, ``offline`` and the like.

        Raises:
            RunError: SuperLink does not answer.
        """
        return {node.node_id: node.status for node in self._nodes()}

    def start_run(self, bundle: bytes, *, config: Mapping[str, str | int | float | bool]) -> int:
        """Start a Flower run and return its id.

        Args:
            bundle: Flower's app bundle.
            config: What overrides the app's own run configuration.

        Raises:
            RunError: SuperLink does not answer, or refuses.
        """
        fab = Fab(hashlib.sha256(bundle).hexdigest(), bundle, {})
        request = StartRunRequest(
            fab=fab_to_proto(fab), override_config=user_config_to_proto(dict(config))
        )
        return self._ask(lambda: self._client.StartRun(request)).run_id

    def stop_run(self, run_id: int) -> None:
        """Stop a Flower run.

        Raises:
            RunError: SuperLink does not answer, knows no such run, or it has finished.
        """
        self._ask(lambda: self._client.StopRun(StopRunRequest(run_id=run_id)))

    def runs(self) -> Mapping[int, str]:
        """Return the status of each Flower run, such as ``running`` or ``finished:failed``.

        Raises:
            RunError: SuperLink does not answer.
        """
        listed = self._ask(lambda: self._client.ListRuns(ListRunsRequest(limit=_MANY)))
        return {
            run_id: ":".join(filter(None, (run.status.status, run.status.sub_status)))
            for run_id, run in listed.run_dict.items()
        }

    def _nodes(self) -> list[NodeInfo]:
        return list(self._ask(lambda: self._client.ListNodes(ListNodesRequest())).nodes_info)

    def _ask(self, question: Callable[[], Answer]) -> Answer:
        try:
            return question()
        except httpx.TransportError as error:
            raise RunError(
                f"SuperLink does not answer at {self._address} ({error}). "
                "Start the aggregator first: fedlora server start."
            ) from error
        except httpx.HTTPStatusError as error:
            known = FlowerError.from_json(error.response.text)
            reason = known.message if known else f"HTTP status {error.response.status_code}"
            raise RunError(f"SuperLink at {self._address} refuses: {reason}") from error
