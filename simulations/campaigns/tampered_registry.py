"""A registry whose answers are changed on their way: each is a protobuf message, some bytes other.

It is a server of its own, of the calls that a reader makes: what travels can be had as bytes.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc

from fedlora.registry.v1 import registry_pb2 as v1
from fedlora.release.store import Store

SERVICE = "fedlora.registry.v1.Registry"
CALLS = "DownloadArtifact", "GetRelease", "ListReleases"


class Tampered:
    """Answers of a store, in which those to one call are changed.

    Args:
        store: has the releases.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.call = ""
        """Whose answers are changed."""
        self.change: Callable[[bytes], bytes] = bytes
        self.address = ""

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Answer on loopback during the block."""
        server = grpc.server(ThreadPoolExecutor(4))
        one, many = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "ListReleases": one(self._index, v1.ListReleasesRequest.FromString),
            "GetRelease": one(self._manifest, v1.GetReleaseRequest.FromString),
            "DownloadArtifact": many(self._file, v1.DownloadArtifactRequest.FromString),
        }
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, handlers)])
        self.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        try:
            yield
        finally:
            server.stop(None).wait()

    def _index(self, request: v1.ListReleasesRequest, _: grpc.ServicerContext) -> bytes:
        sealed = self._store.index(request.name)
        return self._sent("ListReleases", v1.ListReleasesResponse(sealed_index=sealed))

    def _manifest(self, request: v1.GetReleaseRequest, _: grpc.ServicerContext) -> bytes:
        manifest, signature = self._store.manifest(request.release)
        answer = v1.GetReleaseResponse(manifest=manifest, signature=signature)
        return self._sent("GetRelease", answer)

    def _file(
        self, request: v1.DownloadArtifactRequest, _: grpc.ServicerContext
    ) -> Iterator[bytes]:
        for data in self._store.read(request.release, request.file, offset=request.offset):
            yield self._sent("DownloadArtifact", v1.DownloadArtifactResponse(data=data))

    def _sent(
        self,
        call: str,
        answer: v1.ListReleasesResponse | v1.GetReleaseResponse | v1.DownloadArtifactResponse,
    ) -> bytes:
        message = answer.SerializeToString()
        return self.change(message) if call == self.call else message
