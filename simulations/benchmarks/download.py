"""Pulling an 84 MB adapter from a registry on loopback, beside copying it with fewer checks.

Ours is a whole pull: index and manifest with their signatures, the file in chunks of 1 MiB, all
digests, and everything on disk before it is put in its place. One peer copies the file through a
gRPC stream of 1 MiB chunks of bare bytes, with no checks; the other downloads it over HTTP (a file
server that uses the kernel's ``sendfile``) and hashes it. Each server is a process of its own, and
the clients keep their connections. 84 MB are the bfloat16 factors of rank 16 on all linear layers
of a model of 8 billion parameters; the values do not matter here, and are random bytes.
"""

import hashlib
import http.client
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np

from fedlora.release.pull import Puller
from fedlora.release.registry.client import RegistryClient
from simulations.benchmarks.measure import compare, interleaved, report
from simulations.benchmarks.plain_servers import CHUNK, METHOD
from simulations.loopback import DIES_WITH_US, free_ports
from simulations.published import Scene, manifest_of

LIMITS = {"pull / plain gRPC stream": 2.0, "pull / HTTP with SHA-256": 1.0}
_OURS, _STREAM, _HTTP = "pull", "plain gRPC stream", "HTTP with SHA-256"
_FILE = "adapter_model.safetensors"
_BYTES = 84_000_000


def run(n: int) -> None:
    """Measure, and print the result."""
    with tempfile.TemporaryDirectory() as name, _servers(Path(name)) as variants:
        seconds = interleaved(variants, n=n)
    bars = [
        compare(f"{_OURS} / {peer}", seconds, ours=_OURS, peer=peer, at_most=limit)
        for peer, limit in zip((_STREAM, _HTTP), LIMITS.values(), strict=True)
    ]
    print(f"{'':{len(_STREAM)}}  MB/s of each repetition")
    for variant, times in seconds.items():
        rates = "  ".join(f"{_BYTES / 1e6 / each:5.0f}" for each in times)
        print(f"{variant:{len(_STREAM)}}  {rates}")
    print()
    report("download", bars, LIMITS)


@contextmanager
def _servers(path: Path) -> Iterator[dict[str, Callable[[], None]]]:
    """Publish an adapter, serve it in three ways, and yield what downloads it in each."""
    scene = Scene.new(path)
    folder = scene.draft()
    (folder / _FILE).write_bytes(np.random.default_rng(0).bytes(_BYTES))
    release = scene.publisher.publish(folder, manifest_of(folder))
    served = scene.store.path / "releases" / release.id
    [port] = free_ports(1)
    address = f"127.0.0.1:{port}"
    serve = ["fedlora", "registry", "serve", str(scene.store.path), "--address", address]
    plain = ["simulations.benchmarks.plain_servers"]
    with (
        _process(serve),
        _process([*plain, "grpc", str(served)]) as stream,
        _process([*plain, "http", str(served)]) as files,
        RegistryClient(address, key=scene.signer.public) as client,
        grpc.insecure_channel(f"127.0.0.1:{_port(stream)}") as channel,
    ):
        connection = http.client.HTTPConnection("127.0.0.1", _port(files))
        yield {
            _OURS: lambda: _pull(client, scene, into=path / "pulled"),
            _STREAM: lambda: _copy(channel, path / "copied"),
            _HTTP: lambda: _download(
                connection, path / "downloaded", release.manifest.files[_FILE].sha256
            ),
        }
        connection.close()


def _pull(client: RegistryClient, scene: Scene, *, into: Path) -> None:
    Puller(client, scene.signer.public, home=into / "home").pull("demo", into=into / "release")
    shutil.rmtree(into)


def _copy(channel: grpc.Channel, path: Path) -> None:
    with path.open("wb") as file:
        file.writelines(channel.unary_stream(METHOD)(_FILE.encode()))
    path.unlink()


def _download(connection: http.client.HTTPConnection, path: Path, expected: str) -> None:
    connection.request("GET", f"/{_FILE}")
    answer, digest = connection.getresponse(), hashlib.sha256()
    with path.open("wb") as file:
        while chunk := answer.read(CHUNK):
            digest.update(chunk)
            file.write(chunk)
    if digest.hexdigest() != expected:
        raise ValueError("other bytes came")
    path.unlink()


@contextmanager
def _process(module: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a module during the block."""
    command = [*DIES_WITH_US, str(os.getpid()), "-", "-", sys.executable, "-m", *module]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.terminate()


def _port(process: subprocess.Popen[bytes]) -> int:
    if process.stdout is None:
        raise ValueError("a pipe was expected")
    return int(process.stdout.readline())
