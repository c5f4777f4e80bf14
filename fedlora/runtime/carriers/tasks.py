"""Tasks of Flower's runtime API: how a process of ours gets work from a SuperLink or SuperNode.

Flower's own executor starts a process for each task, which installs and runs the app bundle that
came over the network. Ours is the process, does the work itself, and never looks at the bundle.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import httpx
from flwr.proto.runtime_pb2 import AcquireTaskRequest, SendTaskHeartbeatRequest
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.runtime import RuntimeHttpClient

TaskKind = Literal["flwr-serverapp", "flwr-clientapp"]

_BEAT = 10.0
"""Seconds between signs of life; without them Flower takes a task to be dead after about 50."""

_COMPONENT = "fedlora"


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where a SuperLink or SuperNode offers its runtime API."""

    address: str
    """``host:port``."""
    secret: bytes
    """Shared with it: who knows it may take tasks."""
    certificates: bytes | None = None
    """PEM of the authority that its certificate is from; none where it speaks plaintext, which it
    may on loopback."""

    def acquire(self, kind: TaskKind) -> str | None:
        """Return the token of the oldest task that waits, or none.

        Raises:
            httpx.HTTPError: there is nobody, or they refuse.
        """
        auth = SuperExecAuthHttpInterceptor(
            master_secret=self.secret, protected_methods=["/flwr.proto.Runtime/AcquireTask"]
        )
        client = RuntimeHttpClient.from_server_address(
            server_address=self.address,
            insecure=self.certificates is None,
            root_certificates=self.certificates,
            interceptors=[RuntimeVersionHttpInterceptor(component_name=_COMPONENT), auth],
        )
        try:
            answer = client.AcquireTask(AcquireTaskRequest(supported_task_types=[kind]))
        finally:
            client.close()
        return answer.token or None

    def client(self, token: str) -> RuntimeHttpClient:
        """Return a client that acts for one task, and does not repeat what fails."""
        return RuntimeHttpClient.from_server_address(
            server_address=self.address,
            insecure=self.certificates is None,
            root_certificates=self.certificates,
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name=_COMPONENT),
                RuntimeTokenHttpInterceptor(token),
            ],
        )


@contextmanager
def beating(client: RuntimeHttpClient) -> Iterator[None]:
    """Send signs of life of the client's task for as long as the block runs."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(_BEAT):
            try:
                client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
            except (httpx.HTTPError, ValueError):
                continue  # what it was for finds out by itself that the task has gone

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
