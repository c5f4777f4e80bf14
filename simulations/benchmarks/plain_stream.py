"""A peer of the registry: a file over gRPC, with nothing around it.

``python -m simulations.benchmarks.plain_stream FOLDER`` serves a folder's files on a port of
loopback, which it prints.
"""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

METHOD = "/plain.Files/Read"
_CHUNK = 2**20


def serve(folder: Path) -> None:
    """Stream files in chunks of 1 MiB: bare bytes, without protobuf."""

    def read(name: bytes, _: grpc.ServicerContext) -> Iterator[bytes]:
        with (folder / name.decode()).open("rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk

    service, _, method = METHOD.removeprefix("/").partition("/")
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        method: grpc.unary_stream_rpc_method_handler(read)
    }
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, handlers)])
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
