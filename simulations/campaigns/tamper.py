"""Seeded changes to releases on their way to a reader: each must be refused, and leave nothing.

In each trial a source gives one thing that was changed: a file, a manifest, a signature, an index,
or a message of the registry. The reader pulls; then the same change is made in the folder of a
release that it has, which is verified offline. A change is a flipped bit, a hole, a doubled or
moved piece, a cut, an appendix, noise, what another release has in that place, or a value of the
JSON.
"""

import json
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fedlora.errors import ReleaseError
from fedlora.release.folder import SIGNATURE, Release, verify
from fedlora.release.manifest import MANIFEST
from fedlora.release.pull import Puller
from fedlora.release.registry.client import RegistryClient
from fedlora.release.registry.limits import Limits
from fedlora.release.store import Store
from fedlora.signing import Signer, canonical, new_key
from simulations.campaigns.tampered_registry import CALLS, Tampered
from simulations.published import Scene

INDEX = "index"
"""What the trial calls a name's sealed index."""

_MOST = 64
"""Bytes that a change takes or puts in."""


class Changed(Store):
    """A source that gives one thing that was changed."""

    what = ""
    content = b""

    def index(self, name: str) -> bytes:
        return self.content if self.what == INDEX else super().index(name)

    def manifest(self, release: str) -> tuple[bytes, bytes]:
        payload, signature = super().manifest(release)
        return (
            self.content if self.what == MANIFEST else payload,
            self.content if self.what == SIGNATURE else signature,
        )

    def read(self, release: str, file: str, *, offset: int = 0) -> Iterator[bytes]:
        if file == self.what:
            return iter([self.content[offset:]])
        return super().read(release, file, offset=offset)


def run(*, trials: int, seed: int) -> None:
    """Run the trials and print what became of them."""
    generator = random.Random(seed)
    refused, problems = Counter[str](), list[str]()
    with tempfile.TemporaryDirectory() as name:
        scene = Scene.new(Path(name))
        other, release = scene.publish(seed=1), scene.publish(seed=2)
        things, others = _things(scene, release), _things(scene, other)
        others[INDEX] = _forged(scene)
        registry = Tampered(scene.store)

        def problem_of(what: str, how: str) -> str:
            if what in CALLS:
                registry.call = what
                registry.change = lambda message: CHANGES[how](message, b"", generator)
                return _answer(scene, release, registry)
            content = CHANGES[how](things[what], others[what], generator)
            if content == things[what]:  # nothing was changed: a piece moved onto its like
                content += b"x"
            return _pull(scene, what, content) or _verify(scene, release, what, content=content)

        with registry.serving():
            for trial in range(trials):
                what = generator.choice(sorted([*things, *CALLS]))
                how = generator.choice(sorted(CHANGES))
                problem = problem_of(what, how)
                refused[f"{what:26} {how}"] += not problem
                if problem:
                    problems.append(f"trial {trial}, {what}, {how}: {problem}")
    for line, count in sorted(refused.items()):
        print(f"{count:5} refused   {line}")
    for problem in problems:
        print(problem)
    survived = trials - len(problems)
    result = {"name": "tamper", "trials": trials, "survived": survived, "seed": seed}
    print(json.dumps(result | {"holds": survived == trials and trials > 0}))


def _forged(scene: Scene) -> bytes:
    """Return an index that is as it should be, but for who signed it."""
    path = scene.path / "other.key"
    new_key(path)
    return scene.publisher.index("demo").renewed(now=scene.now).seal(Signer.load(path))


def _answer(scene: Scene, release: Release, registry: Tampered) -> str:
    """Return what went wrong when a registry's answers were changed; nothing if all was refused.

    A change that says the same in another way, as protobuf can, may bring the very release.
    """
    key = scene.signer.public
    with (
        tempfile.TemporaryDirectory() as name,
        RegistryClient(registry.address, key=key, limits=Limits(call_s=5, stream_s=5)) as client,
    ):
        home = Path(name)
        puller = Puller(client, key, home=home)
        problem = _refusal(lambda: puller.pull("demo"))
        shown = list((home / "releases").glob("[!.]*"))
        if shown:
            return "" if verify(shown[0], key=key).id == release.id else f"{shown} can be seen"
        return problem


def _things(scene: Scene, release: Release) -> dict[str, bytes]:
    """Return all that a reader is given of a release, by name."""
    folder = scene.store.path / "releases" / release.id
    things = {path.name: path.read_bytes() for path in folder.iterdir()}
    return {**things, INDEX: scene.store.index(release.manifest.name)}


def _pull(scene: Scene, what: str, content: bytes) -> str:
    """Return what went wrong when a reader was given the change; nothing if it was refused."""
    source = Changed(scene.store.path, key=scene.signer.public)
    source.what, source.content = what, content
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        puller = Puller(source, scene.signer.public, home=home)
        problem = _refusal(lambda: puller.pull("demo"))
        shown = list((home / "releases").glob("[!.]*"))
        if problem or shown:
            return problem or f"{shown} can be seen"
        pulled = Puller(scene.store, scene.signer.public, home=home).pull("demo")
        verify(pulled.folder, key=scene.signer.public)  # what was left spoils nothing
        return ""


def _verify(scene: Scene, release: Release, what: str, *, content: bytes) -> str:
    """Return what went wrong when a folder had the change; nothing if it was refused."""
    if what == INDEX:  # which is in no release's folder
        return ""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path, original in _things(scene, release).items():
            if path != INDEX:
                (folder / path).write_bytes(content if path == what else original)
        return _refusal(lambda: verify(folder, key=scene.signer.public))


def _refusal(use: Callable[[], object]) -> str:
    """Return nothing if a use is refused with an error that a user can act on."""
    try:
        use()
    except ReleaseError as error:
        return "" if len(str(error)) > 20 else f"the error says nothing: {error}"
    except Exception as error:  # noqa: BLE001 - a crash is what the campaign looks for
        return f"it crashed: {error!r}"
    return "it was not refused"


def _flip(content: bytes, other: bytes, generator: random.Random) -> bytes:  # noqa: ARG001 - as all
    changed = bytearray(content)
    changed[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    return bytes(changed)


def _hole(content: bytes, other: bytes, generator: random.Random) -> bytes:  # noqa: ARG001 - as all
    start, end = _piece(content, generator)
    return content[:start] + content[end:]


def _doubled(content: bytes, other: bytes, generator: random.Random) -> bytes:  # noqa: ARG001 - as all
    start, end = _piece(content, generator)
    return content[:end] + content[start:]


def _moved(content: bytes, other: bytes, generator: random.Random) -> bytes:  # noqa: ARG001 - as all
    start, end = _piece(content, generator)
    return content[start:end] + content[:start] + content[end:]


def _cut(content: bytes, other: bytes, generator: random.Random) -> bytes:  # noqa: ARG001 - as all
    return content[: generator.randrange(len(content))]


def _longer(content: bytes, other: bytes, generator: random.Random) -> bytes:  # noqa: ARG001 - as all
    return content + generator.randbytes(generator.randint(1, _MOST))


def _noise(content: bytes, other: bytes, generator: random.Random) -> bytes:  # noqa: ARG001 - as all
    start, end = _piece(content, generator)
    return content[:start] + generator.randbytes(end - start) + content[end:]


def _anothers(content: bytes, other: bytes, generator: random.Random) -> bytes:  # noqa: ARG001 - as all
    """Return what is as well made, and signed, but not what belongs here."""
    return other


def _another_value(content: bytes, other: bytes, generator: random.Random) -> bytes:
    """Return the JSON with one value of another kind, in canonical spelling; else a flipped bit."""
    try:
        facts = json.loads(content)
    except ValueError:
        return _flip(content, other, generator)
    place = facts
    while True:
        keys: Any = list(place) if isinstance(place, dict) else range(len(place))
        if not keys:
            return _flip(content, other, generator)
        key = generator.choice(keys)
        if not isinstance(place[key], dict | list) or not place[key]:
            break
        place = place[key]
    place[key] = generator.choice([None, True, -1, 2**70, 0.5, "", "x", "../x", [], {}, "é"])
    return canonical(facts) if isinstance(facts, dict) else content


def _piece(content: bytes, generator: random.Random) -> tuple[int, int]:
    """Return where some bytes begin and end."""
    start = generator.randrange(len(content))
    return start, min(len(content), start + generator.randint(1, _MOST))


CHANGES: Mapping[str, Callable[[bytes, bytes, random.Random], bytes]] = {
    "a flipped bit": _flip,
    "a hole": _hole,
    "a doubled piece": _doubled,
    "a moved piece": _moved,
    "cut short": _cut,
    "longer": _longer,
    "noise": _noise,
    "another release's": _anothers,
    "another value": _another_value,
}
