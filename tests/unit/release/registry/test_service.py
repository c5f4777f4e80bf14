"""A registry keeps what its publisher signed, whole, and refuses everything else."""

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Event

import grpc
import pytest
from grpc import StatusCode

from fedlora.errors import ReleaseError
from fedlora.registry.v1 import registry_pb2 as v1
from fedlora.registry.v1.registry_pb2_grpc import RegistryStub
from fedlora.release.folder import sign_folder, verify
from fedlora.release.manifest import Manifest
from fedlora.release.pull import Puller
from fedlora.release.registry.client import RegistryClient, _parts
from fedlora.release.registry.limits import Limits
from fedlora.signing import Signer, new_key
from simulations.published import Scene, manifest_of
from tests.registry import Running, served


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene.new(tmp_path)


@pytest.fixture
def running(scene: Scene) -> Iterator[Running]:
    with served(scene.store, limits=Limits(idle_s=1, release=10**6)) as found:
        yield found


@pytest.fixture
def client(scene: Scene, running: Running) -> Iterator[RegistryClient]:
    with RegistryClient(running.address, key=scene.signer.public) as found:
        yield found


@pytest.fixture
def stub(running: Running) -> Iterator[RegistryStub]:
    with grpc.insecure_channel(running.address) as channel:
        yield RegistryStub(channel)


def refusal(call: Callable[[], object]) -> tuple[StatusCode, str]:
    """Return what a call is refused with."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details()


def upload(scene: Scene) -> list[v1.PublishReleaseRequest]:
    """Return the messages of an upload of a signed release."""
    folder = scene.draft()
    manifest = manifest_of(folder)
    sign_folder(folder, manifest, signer=scene.signer)
    index = scene.publisher.index("demo").published(manifest.release, now=scene.now)
    return list(_parts(folder, index.seal(scene.signer)))


def leftovers(scene: Scene) -> list[str]:
    """Return what there is of releases, indices and uploads."""
    store = scene.store.path
    folders = ("releases", "index", "incoming")
    found = (path.name for name in folders for path in (store / name).glob("*"))
    return sorted(name for name in found if name != ".lock")


def test_what_is_published_can_be_pulled(
    scene: Scene, client: RegistryClient, tmp_path: Path
) -> None:
    """By alias, with all verification; the folder is the publisher's, to the byte."""
    publisher, folder = scene.publisher_at(client), scene.draft()
    release = publisher.publish(folder, manifest_of(folder))
    publisher.move("demo", "production", release.id, expected=None, reason="good")

    puller = Puller(client, scene.signer.public, home=tmp_path / "elsewhere")
    pulled = puller.pull("demo@production", into=tmp_path / "here")

    assert pulled.id == release.id
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {
        p.name: p.read_bytes() for p in pulled.folder.iterdir()
    }
    assert client.names() == ["demo"]
    verify(scene.store.path / "releases" / release.id, key=scene.signer.public)


def test_each_change_of_an_index_comes_through(scene: Scene, client: RegistryClient) -> None:
    """Moved, rolled back, renewed and revoked, each a version of its own."""
    publisher = scene.publisher_at(client)
    first, second = (
        publisher.publish(scene.draft(seed=seed), manifest_of(scene.draft(seed=seed)))
        for seed in (1, 2)
    )
    publisher.move("demo", "production", first.id, expected=None, reason="good")
    publisher.move("demo", "production", second.id, expected=first.id, reason="better")
    publisher.roll_back("demo", "production", reason="worse")
    publisher.renew("demo")
    publisher.revoke("demo", second.id, reason="bad")

    index = publisher.index("demo")
    assert index.version == 7
    assert index.target("production") == first.id
    assert not index.is_usable(second.id)


def test_of_two_that_change_the_same_version_one_wins(scene: Scene, client: RegistryClient) -> None:
    """The other is told, and the first one's stays."""
    publisher = scene.publisher_at(client)
    release = publisher.publish(scene.draft(), manifest_of(scene.draft()))
    index = publisher.index("demo")
    moved = index.moved("a", release.id, expected=None, reason="x", now=scene.now)
    other = index.moved("b", release.id, expected=None, reason="x", now=scene.now)
    client.commit(moved.seal(scene.signer))

    with pytest.raises(ReleaseError, match=r"somebody else was quicker.*ABORTED"):
        client.commit(other.seal(scene.signer))
    assert set(publisher.index("demo").aliases) == {"latest", "a"}


def test_what_is_sent_again_is_answered_again(
    scene: Scene, client: RegistryClient, stub: RegistryStub
) -> None:
    """A caller whose line broke before the answer can ask again; nothing is done twice."""
    parts = upload(scene)
    for _ in range(2):
        stub.PublishRelease(iter(parts))
    index = scene.publisher.index("demo").renewed(now=scene.now).seal(scene.signer)
    for _ in range(2):
        client.commit(index)
    assert scene.publisher.index("demo").version == 2

    scene.publisher.renew("demo")  # whatever others have committed since
    stub.PublishRelease(iter(parts))
    client.commit(index)
    assert scene.publisher.index("demo").version == 3


def test_of_a_release_that_is_there_nothing_is_written(scene: Scene, stub: RegistryStub) -> None:
    """Whoever has a token can send its header, which was signed, but fills no disk with it."""
    parts = upload(scene)
    stub.PublishRelease(iter(parts))
    before, during = leftovers(scene), []

    def again() -> Iterator[v1.PublishReleaseRequest]:
        yield from parts[:-1]
        time.sleep(0.5)
        during.extend(leftovers(scene))
        yield parts[-1]

    stub.PublishRelease(again())
    assert during == before


def test_a_release_that_no_index_lists_yet_is_listed(scene: Scene, stub: RegistryStub) -> None:
    """A registry was killed between the two; what it had brought in is verified, and stays."""
    parts = upload(scene)
    folder = scene.draft()
    release = Manifest.from_json(parts[0].header.manifest, source="")
    sign_folder(folder, release, signer=scene.signer)
    place = scene.store.path / "releases" / release.release
    shutil.copytree(folder, place)
    inode = place.stat().st_ino
    stub.PublishRelease(iter(parts))
    assert (leftovers(scene), place.stat().st_ino) == ([release.release, "demo"], inode)


def test_only_so_many_uploads_come_at_once(scene: Scene) -> None:
    """The next one is told to wait; it comes in once there is room."""
    parts = upload(scene)
    with (
        served(scene.store, limits=Limits(uploads=1)) as running,
        grpc.insecure_channel(running.address) as channel,
    ):
        stub = RegistryStub(channel)
        sent, over = Event(), Event()
        call = stub.PublishRelease.future(held(parts[:1], sent, over))
        wait(lambda: bool(uploads(scene)))
        code, text = refusal(lambda: stub.PublishRelease(iter(parts)))
        assert (code, "More than 1 uploads at once" in text) == (
            StatusCode.RESOURCE_EXHAUSTED,
            True,
        )
        call.cancel()
        over.set()
        wait(lambda: not uploads(scene))
        stub.PublishRelease(iter(parts))
    assert scene.store.names() == ["demo"]


def uploads(scene: Scene) -> list[Path]:
    """Return the folders of uploads under way."""
    return list((scene.store.path / "incoming").glob("[!.]*"))


def test_each_call_takes_only_its_own_change(
    scene: Scene, client: RegistryClient, stub: RegistryStub
) -> None:
    """A revocation by SetAlias, a move by RevokeRelease, both at once, and garbage are refused."""
    release = scene.publisher_at(client).publish(scene.draft(), manifest_of(scene.draft()))
    index = scene.publisher.index("demo")
    revoked = index.revoking(release.id, reason="x", now=scene.now)
    moved = index.moved("a", release.id, expected=None, reason="x", now=scene.now)
    both = moved.model_copy(update={"releases": revoked.releases})
    collected = index.collecting([release.id], now=scene.now)
    set_alias = [
        v1.SetAliasRequest(sealed_index=i.seal(scene.signer)) for i in (revoked, both, collected)
    ]
    revoke = [
        v1.RevokeReleaseRequest(sealed_index=i.seal(scene.signer)) for i in (moved, both, collected)
    ]

    answers = [refusal(lambda r=r: stub.SetAlias(r)) for r in set_alias]
    answers += [refusal(lambda r=r: stub.RevokeRelease(r)) for r in revoke]

    assert {code for code, _ in answers} == {StatusCode.INVALID_ARGUMENT}
    assert all("this is neither's" in text for _, text in answers)
    assert scene.publisher.index("demo") == index


def test_another_s_signature_gets_nothing_in(
    scene: Scene, stub: RegistryStub, tmp_path: Path
) -> None:
    """Neither a release, of which no byte is taken, nor an index."""
    new_key(tmp_path / "other.key")
    other = Signer.load(tmp_path / "other.key")
    folder = scene.draft()
    sign_folder(folder, manifest_of(folder), signer=other)
    index = scene.publisher.index("demo").published("ab" * 32, now=scene.now).seal(other)

    answers = [
        refusal(lambda: stub.PublishRelease(_parts(folder, index))),
        refusal(lambda: stub.SetAlias(v1.SetAliasRequest(sealed_index=index))),
    ]

    assert {code for code, _ in answers} == {StatusCode.INVALID_ARGUMENT}
    assert all("the signature is not good" in text for _, text in answers)
    assert leftovers(scene) == []


def held(
    parts: Sequence[v1.PublishReleaseRequest], sent: Event, over: Event
) -> Iterator[v1.PublishReleaseRequest]:
    """Yield messages, then nothing more; the stream stays open."""
    yield from parts
    sent.set()
    over.wait(30)


def test_an_upload_that_breaks_off_leaves_nothing(scene: Scene, stub: RegistryStub) -> None:
    """Wherever it does; and the registry goes on."""
    parts = upload(scene)
    for count in range(len(parts)):
        sent, over = Event(), Event()
        call = stub.PublishRelease.future(held(parts[:count], sent, over))
        assert sent.wait(30)
        call.cancel()
        over.set()
    wait(lambda: leftovers(scene) == [])
    stub.PublishRelease(iter(parts))

    assert len(leftovers(scene)) == 2  # the release and its index


def test_an_upload_that_falls_silent_is_ended(scene: Scene, stub: RegistryStub) -> None:
    """After the time that may pass between two messages; nothing of it stays."""
    sent, over = Event(), Event()
    code, _ = refusal(lambda: stub.PublishRelease(held(upload(scene)[:2], sent, over)))
    over.set()

    assert code is StatusCode.DEADLINE_EXCEEDED
    assert leftovers(scene) == []


def wait(reached: Callable[[], bool]) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + 30
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def chunk(file: str, data: bytes) -> v1.PublishReleaseRequest:
    """Return a piece of a file."""
    return v1.PublishReleaseRequest(chunk=v1.FileChunk(file=file, data=data))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda parts: [parts[1], *parts], "signature is not good"),
        (lambda parts: [parts[0], chunk("../x", b"x"), *parts[1:]], "knows no file"),
        (lambda parts: [parts[0], chunk("manifest.json", b"x"), *parts[1:]], "knows no file"),
        (lambda parts: [*parts[:2], parts[1], *parts[2:]], "but more came"),
        (lambda parts: [*parts[:3], parts[1], *parts[3:]], "one after another"),
        (lambda parts: [*parts[:2], chunk(parts[1].chunk.file, b""), *parts[2:]], "empty piece"),
        (lambda parts: [parts[0], chunk(parts[1].chunk.file, b""), *parts[1:]], "empty piece"),
        (lambda parts: [parts[0], *parts[2:]], "has not come"),
        (lambda parts: parts[:-1], "and, last, the index"),
        (lambda parts: [*parts[:-1], parts[0]], "signed envelope was expected"),
        (
            lambda parts: [
                parts[0],
                chunk(parts[1].chunk.file, bytes(len(parts[1].chunk.data))),
                *parts[2:],
            ],
            "not what was published",
        ),
    ],
)
def test_what_is_no_release_is_refused(
    scene: Scene, stub: RegistryStub, change: Callable, expected: str
) -> None:
    """Other files, other bytes, another order, something missing: with a reason, and no path."""
    code, text = refusal(lambda: stub.PublishRelease(iter(change(upload(scene)))))

    assert code in {StatusCode.INVALID_ARGUMENT, StatusCode.ABORTED}
    assert expected in text
    assert str(scene.store.path) not in text
    assert leftovers(scene) == []


def test_a_release_that_is_too_large_is_refused_before_it_comes(
    scene: Scene, stub: RegistryStub
) -> None:
    """By what its manifest says."""
    folder = scene.draft()
    with (folder / "README.md").open("ab") as file:
        file.truncate(10**6)
    sign_folder(folder, manifest_of(folder), signer=scene.signer)
    header = next(_parts(folder, b""))

    code, text = refusal(lambda: stub.PublishRelease(iter([header])))

    assert (code, "this registry takes 1,000,000" in text) == (StatusCode.INVALID_ARGUMENT, True)


def test_what_is_not_there_is_not_found(client: RegistryClient, stub: RegistryStub) -> None:
    """A name, a release, a file; names and releases of another form are told apart."""
    unknown = "ab" * 32
    codes = [
        refusal(lambda: stub.ListReleases(v1.ListReleasesRequest(name="demo")))[0],
        refusal(lambda: stub.GetRelease(v1.GetReleaseRequest(release=unknown)))[0],
        refusal(lambda: list(stub.WatchReleases(v1.WatchReleasesRequest(name="demo"))))[0],
        refusal(lambda: list(stub.DownloadArtifact(v1.DownloadArtifactRequest(release=unknown))))[
            0
        ],
    ]
    assert codes == [StatusCode.NOT_FOUND] * 4
    for name in ("", "..", "a/b", ".x", "a" * 65):
        with pytest.raises(ReleaseError, match=r"is no name.*INVALID_ARGUMENT"):
            client.index(name)
    for release in ("", "..", ".x", "AB" * 32, unknown[:12], f"{unknown}/x"):
        with pytest.raises(ReleaseError, match=r"64 digits.*INVALID_ARGUMENT"):
            client.manifest(release)


def test_no_file_of_the_store_but_a_release_s_is_read(scene: Scene, stub: RegistryStub) -> None:
    """Neither by a path nor by a half release's folder."""
    release = scene.publish()
    (scene.store.path / "releases" / f".{release.id}.half").mkdir()
    for file in ("../../registry.yaml", "/etc/passwd", "", "."):
        request = v1.DownloadArtifactRequest(release=release.id, file=file)
        code, text = refusal(lambda request=request: list(stub.DownloadArtifact(request)))
        assert (code, str(scene.store.path) in text) == (StatusCode.NOT_FOUND, False)
    request = v1.GetReleaseRequest(release=f".{release.id}.half")
    assert refusal(lambda: stub.GetRelease(request))[0] is StatusCode.INVALID_ARGUMENT


def test_a_file_comes_from_its_offset(scene: Scene, client: RegistryClient, stub) -> None:
    """Any offset within it; nothing from its end on, and an error from nowhere."""
    release = scene.publish()
    file = release.folder / "adapter_model.safetensors"
    content = file.read_bytes()
    for offset in (0, 1, len(content) - 1, len(content), len(content) + 1):
        read = b"".join(client.read(release.id, file.name, offset=offset))
        assert read == content[offset:]
    request = v1.DownloadArtifactRequest(release=release.id, file=file.name, offset=2**64 - 1)
    assert refusal(lambda: list(stub.DownloadArtifact(request)))[0] is StatusCode.OUT_OF_RANGE


def test_a_watch_gives_each_version_once(scene: Scene, client: RegistryClient) -> None:
    """Those that are there after the one that is known, and those that come."""
    release = scene.publish()
    scene.publisher.renew("demo")
    watched = client.watch("demo", after=1)

    assert next(watched) == scene.store.index("demo")
    scene.publisher.move("demo", "a", release.id, expected=None, reason="x")
    assert next(watched) == scene.store.index("demo")
    watched.close()


def test_a_watch_goes_on_after_its_stream_has_ended(scene: Scene) -> None:
    """The registry ends each after a while; the reader notices nothing."""
    scene.publish()
    with (
        served(scene.store, limits=Limits(watch_s=0.1)) as running,
        RegistryClient(running.address, key=scene.signer.public) as client,
    ):
        watched = client.watch("demo", after=0)
        came = filter(None, watched)
        versions = [next(came)]
        scene.publisher.renew("demo")
        versions.append(next(came))
        watched.close()
        calls = [line for line in running.lines if line.get("method") == "WatchReleases"]
    assert versions == list(scene.store.since("demo", after=0))
    assert calls


def test_a_store_has_one_registry(scene: Scene, running: Running) -> None:
    """A second one is refused: it would tidy up the first one's uploads."""
    with pytest.raises(ReleaseError, match="another registry serves"), served(scene.store):
        pytest.fail("it started")


def test_what_a_killed_registry_left_is_tidied_up(scene: Scene) -> None:
    """When the next one starts."""
    left = scene.store.path / "incoming" / "tmpx"
    left.mkdir(parents=True)
    (left / "README.md").write_text("half")

    with served(scene.store):
        assert not left.exists()
