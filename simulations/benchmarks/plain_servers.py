"""Peers of the registry: the file, over gRPC and over HTTP, with nothing around it.

``python -m simulations.benchmarks.plain_servers grpc|http FOLDER`` serves a folder's files on a
port of loopback, which it prints.
"""

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc

METHOD = "/plain.Files/Read"
CHUNK = 2**20


def serve_grpc(folder: Path) -> None:
    """Stream files in chunks of 1 MiB: bare bytes, without protobuf."""

    def read(name: bytes, _: grpc.ServicerContext) -> Iterator[bytes]:
        with (folder / name.decode()).open("rb") as file:
            while chunk := file.read(CHUNK):
                yield chunk

    service, _, method = METHOD.removeprefix("/").partition("/")
    handler = grpc.unary_stream_rpc_method_handler(read)
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(service, {method: handler})]
    )
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    server.wait_for_termination()


class _Files(SimpleHTTPRequestHandler):
    """The standard library's file server, which copies by the kernel's sendfile."""

    protocol_version = "HTTP/1.1"

    def copyfile(self, source, outputfile) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001 - as the standard library's
        outputfile.flush()
        offset = 0
        while sent := os.sendfile(self.connection.fileno(), source.fileno(), offset, CHUNK):
            offset += sent

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as above
        """Say nothing."""


def serve_http(folder: Path) -> None:
    """Serve files over HTTP/1.1."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Files, directory=str(folder)))
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    {"grpc": serve_grpc, "http": serve_http}[sys.argv[1]](Path(sys.argv[2]))
