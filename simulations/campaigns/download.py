"""Kills of readers, publishers and registries: every pull resumes, no half release is visible.

Two trials of seven kill a reader after a random number of bytes; another process with its home must
then fetch what is missing, not a byte more, and get the release. The others kill, at a random
moment of a publication, the publisher that speaks to a registry, the one that writes to the store
itself, or the registry. Then all that readers find must be whole: the release is there and
verified, or nothing of it is; and when it is published again, and the index renewed, it is there,
and nothing that is half lies in the store. While all this goes on, another reader pulls whatever is
newest, again and again.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from itertools import cycle
from pathlib import Path
from typing import Self

from fedlora.errors import ReleaseError
from fedlora.release.pull import Puller
from fedlora.release.registry.client import RegistryClient
from simulations.campaigns.victims import PIECE
from simulations.loopback import DIES_WITH_US, free_ports
from simulations.published import Scene, manifest_of

READER, PUBLISHER, WRITER, REGISTRY = (
    "reader",
    "publisher to a registry",
    "publisher to a store",
    "registry",
)
_ORDER = READER, PUBLISHER, WRITER, READER, REGISTRY, PUBLISHER, WRITER
_FILE = "adapter_model.safetensors"
_BYTES = 3_000_000
_PATIENCE = 60.0
"""Seconds for what should take one."""


class Service:
    """A registry in a process of its own, which can be killed and comes back.

    Args:
        scene: whose store it serves.
    """

    def __init__(self, scene: Scene) -> None:
        self.address = f"127.0.0.1:{free_ports(1)[0]}"
        self.scene = scene
        self.process = self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        _end(self.process)

    def revive(self) -> None:
        """Start it again, unless it runs; wait until it answers."""
        if self.process.poll() is not None:
            self.process = self._start()
        with self.client() as client:
            client.names()

    def client(self) -> RegistryClient:
        """Return a client of it."""
        return RegistryClient(self.address, key=self.scene.signer.public)

    def _start(self) -> subprocess.Popen[bytes]:
        store = str(self.scene.store.path)
        return _process("fedlora", "registry", "serve", store, "--address", self.address)


class Watcher:
    """A reader that pulls whatever is newest, again and again, in a thread."""

    def __init__(self, service: Service) -> None:
        self._service, self._scene = service, service.scene
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.pulled: Counter[str] = Counter()
        self.wrong: list[str] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        home = self._scene.path / "watcher"
        with self._service.client() as client:
            puller = Puller(client, self._scene.signer.public, home=home)
            while not self._over.wait(0.1):
                try:
                    release = puller.pull("demo", into=home / "newest")
                except ReleaseError as error:
                    if "UNAVAILABLE" not in str(error):  # that is what a killed registry looks like
                        self.wrong.append(str(error))
                else:
                    self.pulled[release.id] += 1
                shutil.rmtree(home / "newest", ignore_errors=True)


def run(*, trials: int, seed: int) -> None:
    """Run the trials and print what became of them."""
    generator, problems = random.Random(seed), list[str]()
    survived, tried = Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory() as name:
        scene = Scene.new(Path(name))
        _publish(scene, 0)
        with Service(scene) as service:
            service.revive()
            usual = _seconds_of(_publication(scene, service.address, 1))
            with Watcher(service) as watcher:
                for trial, victim in zip(range(2, trials + 2), cycle(_ORDER), strict=False):
                    if victim == READER:
                        problem = _kill_reader(
                            service, trial, most=generator.randrange(1, _BYTES - PIECE)
                        )
                    else:
                        moment = generator.uniform(0, 1.2 * usual)
                        problem = _kill_publisher(service, trial, victim=victim, moment=moment)
                    tried[victim] += 1
                    survived[victim] += not problem
                    problems += [f"trial {trial - 2}, {victim}: {problem}"] if problem else []
            problems += [f"the reader beside: {text}" for text in watcher.wrong]
    for victim in dict.fromkeys(_ORDER):
        print(f"{victim:24} killed {tried[victim]:4}, survived {survived[victim]:4}")
    print(f"releases that the reader beside has pulled, whole: {sum(watcher.pulled.values())}")
    for problem in problems:
        print(problem)
    facts = {"name": "download", "trials": trials, "survived": survived.total(), "seed": seed}
    print(json.dumps(facts | {"holds": survived.total() == trials and not problems}))


def _kill_reader(service: Service, trial: int, *, most: int) -> str:
    """Kill a reader after some bytes, and let another go on; return what went wrong."""
    scene = service.scene
    home = scene.path / f"reader-{trial}"
    index = scene.publisher.index("demo")
    key = scene.signer.public.text
    first = _victim("read", service.address, key, str(home), str(most))
    if _end(first) != -signal.SIGKILL:
        return "it was not killed"
    had = sum(path.stat().st_size for path in home.glob(".demo.*.partial/*"))
    second = _victim("read", service.address, key, str(home), "-1")
    said, _ = second.communicate(timeout=_PATIENCE)
    if second.returncode:
        return "the next one did not get the release"
    got, release = said.split()
    shutil.rmtree(home)
    if release.decode() != index.target("latest"):
        return "another release came"
    files = scene.puller.manifest(f"demo@{release.decode()}").files
    size = sum(file.size for file in files.values())
    return "" if int(got) == size - had else f"{int(got)} bytes came of {size}, {had} were there"


def _kill_publisher(service: Service, trial: int, *, victim: str, moment: float) -> str:
    """Kill who publishes, or who is published to; return what went wrong."""
    scene = service.scene
    target = str(scene.store.path) if victim == WRITER else service.address
    before = scene.publisher.index("demo")
    publisher = _publication(scene, target, trial)
    _first_line(publisher)
    time.sleep(moment)
    killed = service.process if victim == REGISTRY else publisher
    killed.kill()
    _end(killed)
    service.revive()
    if victim == REGISTRY and _end(publisher):
        return "the publisher did not wait until the registry was back"
    problem = _look(service)
    after = scene.publisher.index("demo")
    if after.version not in {before.version, before.version + 1}:
        problem = problem or "the index has changed more than once"
    if _end(_publication(scene, service.address, trial)):
        return problem or "it could not be published again"
    if len(scene.publisher.index("demo").releases) != len(before.releases) + 1:
        return problem or "it is not there once"
    scene.publisher.renew("demo")
    return problem or _left(scene)


def _look(service: Service) -> str:
    """Pull the two newest releases; return what is wrong with them."""
    home = service.scene.path / "look"
    try:
        with service.client() as client:
            puller = Puller(client, service.scene.signer.public, home=home)
            for release in puller.index("demo").in_order[-2:]:
                puller.pull(f"demo@{release}", into=home / release)
    except ReleaseError as error:
        return str(error)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    return ""


def _left(scene: Scene) -> str:
    """Return what is half, after a while: a call that broke off is first to be noticed."""
    until = time.monotonic() + _PATIENCE
    store = scene.store.path
    while True:
        left = [
            *(store / "incoming").glob("[!.]*"),
            *(store / "releases").glob(".?*"),
            *(store / "index" / "demo").glob(".?*"),
        ]
        names = ", ".join(path.name for path in left if path.name != ".lock")
        if not names or time.monotonic() > until:
            return f"this was left: {names}" if names else ""
        time.sleep(0.05)


def _publish(scene: Scene, seed: int) -> None:
    folder = _draft(scene, seed)
    scene.publisher.publish(folder, manifest_of(folder))


def _draft(scene: Scene, seed: int) -> Path:
    """Return a folder that is to be published: the same for the same seed."""
    folder = scene.path / f"draft-{seed}"
    if not folder.exists():
        scene.draft(seed=seed)
        (folder / _FILE).write_bytes(random.Random(seed).randbytes(_BYTES))
    return folder


def _publication(scene: Scene, target: str, seed: int) -> subprocess.Popen[bytes]:
    """Start a process that publishes a draft."""
    folder = _draft(scene, seed)
    for left in folder.glob(".?*"):  # by one that was killed as it signed; in earnest each drafts
        left.unlink()
    manifest = scene.path / f"manifest-{seed}.json"
    if not manifest.exists():
        manifest.write_bytes(manifest_of(folder).to_json())
    key = scene.path / "publisher.key"
    return _victim("publish", target, str(key), str(folder), str(manifest))


def _victim(*arguments: str) -> subprocess.Popen[bytes]:
    return _process("simulations.campaigns.victims", *arguments)


def _process(*module: str) -> subprocess.Popen[bytes]:
    command = [*DIES_WITH_US, str(os.getpid()), "-", "-", sys.executable, "-m", *module]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def _end(process: subprocess.Popen[bytes]) -> int:
    """Wait for a process's end; return how it ended."""
    process.communicate(timeout=_PATIENCE)
    return process.returncode


def _first_line(process: subprocess.Popen[bytes]) -> bytes:
    return process.stdout.readline() if process.stdout else b""


def _seconds_of(publication: subprocess.Popen[bytes]) -> float:
    """Return how long a publication takes from its beginning."""
    _first_line(publication)
    began = time.monotonic()
    _end(publication)
    return time.monotonic() - began
