"""Pulling an 84 MB adapter from a registry on loopback, beside copying it with fewer checks.

Ours is a whole pull: index and manifest with their signatures, the file in chunks of 1 MiB, all
digests, everything on disk before it is put in its place. One peer copies the file through a gRPC
stream of 1 MiB chunks of bare bytes, with no checks; the other downloads it from the standard
library's HTTP server and hashes it. Theirs is on disk, too, when they are done (``fsync``); what
the stream takes without that is shown beside it. Each server is a process of its own, and the gRPC
clients keep their connections. 84 MB are the bfloat16
factors of rank 16 on all linear layers of a model of 8 billion parameters; the values do not matter
here, and are random bytes.
"""

import hashlib
import itertools
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np

from fedlora.release.pull import Puller
from fedlora.release.registry.client import RegistryClient
from simulations.benchmarks.measure import compare, interleaved, report
from simulations.benchmarks.plain_stream import METHOD
from simulations.loopback import DIES_WITH_US, free_ports
from simulations.published import Scene, manifest_of

_OURS, _STREAM, _HTTP = "pull", "plain gRPC stream", "HTTP with SHA-256"
_UNSAFE = "the stream, not on disk"
_AT_MOST = {_STREAM: 2.0, _HTTP: 1.0}
LIMITS = {f"{_OURS} / {peer}": limit for peer, limit in _AT_MOST.items()}
_FILE = "adapter_model.safetensors"
_BYTES = 84_000_000
_CHUNK = 2**20


def run(n: int) -> None:
    """Measure, and print the result."""
    with tempfile.TemporaryDirectory() as name, _servers(Path(name)) as variants:
        seconds = interleaved(variants, n=n)
    bars = [
        compare(f"{_OURS} / {peer}", seconds, ours=_OURS, peer=peer, at_most=limit)
        for peer, limit in (*_AT_MOST.items(), (_UNSAFE, None))
    ]
    print(f"{'':{len(_UNSAFE)}}  MB/s of each repetition")
    for variant, times in seconds.items():
        rates = "  ".join(f"{_BYTES / 1e6 / each:5.0f}" for each in times)
        print(f"{variant:{len(_UNSAFE)}}  {rates}")
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
    [registry, files] = free_ports(2)
    address = f"127.0.0.1:{registry}"
    serve = ["fedlora", "registry", "serve", str(scene.store.path), "--address", address]
    plain = ["http.server", "--bind", "127.0.0.1", "--directory", str(served), str(files)]
    with (
        _process(serve),
        _process(plain),
        _process(["simulations.benchmarks.plain_stream", str(served)]) as stream,
        RegistryClient(address, key=scene.signer.public) as client,
        grpc.insecure_channel(f"127.0.0.1:{_port(stream)}") as channel,
    ):
        new = (path / f"download-{number}" for number in itertools.count())
        url, digest = f"http://127.0.0.1:{files}/{_FILE}", release.manifest.files[_FILE].sha256
        yield {
            _OURS: lambda: _pull(client, scene, into=next(new)),
            _STREAM: lambda: _copy(channel, next(new), safe=True),
            _UNSAFE: lambda: _copy(channel, next(new), safe=False),
            _HTTP: lambda: _download(url, next(new), expected=digest),
        }


def _pull(client: RegistryClient, scene: Scene, *, into: Path) -> None:
    Puller(client, scene.signer.public, home=into / "home").pull("demo", into=into / "release")


def _copy(channel: grpc.Channel, path: Path, *, safe: bool) -> None:
    read: grpc.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(METHOD)
    with path.open("wb") as file:
        file.writelines(read(_FILE.encode()))
        if safe:
            file.flush()
            os.fsync(file.fileno())


def _download(url: str, path: Path, *, expected: str) -> None:
    digest = hashlib.sha256()
    with (
        urllib.request.urlopen(url) as answer,  # noqa: S310 - http, as the caller says
        path.open("wb") as file,
    ):
        while chunk := answer.read(_CHUNK):
            digest.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    if digest.hexdigest() != expected:
        raise ValueError("other bytes came")


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
