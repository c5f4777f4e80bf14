"""The client of a registry: it goes on where it can, and says what is wrong where it cannot."""

import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread

import grpc
import pytest
from google.protobuf.message import Message

from fedlora.errors import ReleaseError
from fedlora.registry.v1 import registry_pb2 as v1
from fedlora.registry.v1.registry_pb2 import DESCRIPTOR
from fedlora.release.folder import sign_folder
from fedlora.release.pull import Puller
from fedlora.release.registry import client as module
from fedlora.release.registry.client import Identity, RegistryClient
from fedlora.release.registry.limits import Limits
from simulations.published import Scene, manifest_of
from tests.registry import Authority, Line, served

LARGE = 12 * 2**20


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene.new(tmp_path)


def large(scene: Scene) -> Path:
    """Return a draft with a file of many chunks."""
    folder = scene.draft()
    with (folder / "README.md").open("ab") as file:
        file.truncate(LARGE)
    return folder


def publish_large(scene: Scene) -> str:
    """Publish it to the store."""
    folder = large(scene)
    return scene.publisher.publish(folder, manifest_of(folder)).id


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for less long."""
    monkeypatch.setattr(module, "_WAITS", (0.01, 0.01))


def test_a_download_goes_on_where_its_line_broke(scene: Scene, tmp_path: Path) -> None:
    """Three times in the middle; few bytes come twice, and all are right."""
    release = publish_large(scene)
    with (
        served(scene.store) as running,
        Line(running.address, cuts=[8 * 2**20, 3 * 2**20, 3 * 2**20]) as line,
        RegistryClient(line.address, key=scene.signer.public) as client,
    ):
        puller = Puller(client, scene.signer.public, home=tmp_path / "elsewhere")
        pulled = puller.pull("demo", into=tmp_path / "here")
    assert pulled.id == release
    assert line.connections == 4
    assert line.bytes < 24 * 2**20  # from the beginning each time, it would be 26


def test_a_slow_reader_outlasts_streams_and_connections(scene: Scene, tmp_path: Path) -> None:
    """The registry ends each after a while; all bytes come, and each version of an index once."""
    release = publish_large(scene)
    limits = Limits(stream_s=0.5, upload_s=0.2)  # a connection has 1.7 seconds
    content = (scene.store.path / "releases" / release / "README.md").read_bytes()
    with (
        served(scene.store, limits=limits) as running,
        Line(running.address, cuts=[]) as line,
        RegistryClient(line.address, key=scene.signer.public) as client,
    ):
        watched = filter(None, client.watch("demo", after=0))
        versions, read = [next(watched)], []
        for chunk in client.read(release, "README.md"):
            read.append(chunk)
            time.sleep(0.4)
            if len(read) % 4 == 0:
                scene.publisher.renew("demo")
                versions.append(next(watched))
        lines = [line.get("code") for line in running.lines]
    assert b"".join(read) == content
    assert versions == list(scene.store.since("demo", after=0))
    assert line.connections >= 3
    assert "DEADLINE_EXCEEDED" in lines


class Liar:
    """A registry that does something else.

    Args:
        answers: what it does for a call of each name.
    """

    def __init__(
        self, **answers: Callable[[Iterator[bytes], grpc.ServicerContext], object]
    ) -> None:
        self._answers = answers
        self.asked: list[str] = []

    @contextmanager
    def serving(self) -> Iterator[str]:
        """Yield its address."""
        server = grpc.server(ThreadPoolExecutor(4))
        handlers = {
            name: grpc.stream_stream_rpc_method_handler(self._answering(name))
            for name in self._answers
        }
        service = DESCRIPTOR.services_by_name["Registry"].full_name
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, handlers)])
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        try:
            yield address
        finally:
            server.stop(None).wait()

    def _answering(self, name: str) -> Callable[..., Iterator[bytes]]:
        def answer(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            self.asked.append(name)
            for message in self._answers[name](requests, context):
                yield message.SerializeToString()

        return answer


def test_an_upload_has_a_time_that_its_size_needs(scene: Scene) -> None:
    """All tries together: a registry that hangs holds no run up for hours."""
    assert Limits().upload_of(0) == 120
    assert Limits().upload_of(84 * 2**20) == 204
    assert Limits().upload_of(64 * 2**30) == 3600
    left: list[float] = []

    def hang(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[Message]:
        left.append(context.time_remaining())
        list(requests)
        if len(left) < 3:
            time.sleep(0.2)
            context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
        while context.is_active():
            time.sleep(0.05)
        yield v1.PublishReleaseResponse()

    folder = scene.draft()
    sign_folder(folder, manifest_of(folder), signer=scene.signer)
    with (
        Liar(PublishRelease=hang).serving() as address,
        RegistryClient(address, key=scene.signer.public) as client,
    ):
        usual = Limits().upload_of(manifest_of(folder).size)
        limits = Limits(upload_s=1.5)
        with RegistryClient(address, key=scene.signer.public, limits=limits) as hasty:
            began = time.monotonic()
            with pytest.raises(ReleaseError, match="DEADLINE_EXCEEDED"):
                hasty.publish(folder, b"")
            assert time.monotonic() - began < 10
        first, second, third = left
        assert (second < first - 0.2, third < second - 0.2) == (True, True)
        left.clear()
        publication = Thread(target=lambda: suppressed(lambda: client.publish(folder, b"")))
        publication.start()
        while not left:
            time.sleep(0.01)
        assert abs(left[0] - usual) < 10
        client.close()
        publication.join()


def suppressed(call: Callable[[], object]) -> None:
    """Call, whatever comes of it."""
    with suppress(Exception):
        call()


def test_an_answer_that_is_too_large_is_said_to_be(scene: Scene) -> None:
    """At once: it would be so again."""

    def answer(*_: object) -> Iterator[Message]:
        yield v1.ListReleasesResponse(names=["x" * 100] * 50_000)

    liar = Liar(ListReleases=answer)
    with (
        liar.serving() as address,
        RegistryClient(address, key=scene.signer.public) as client,
        pytest.raises(ReleaseError, match=r"larger than max.*No message of a registry is"),
    ):
        client.names()
    assert liar.asked == ["ListReleases"]


def test_a_registry_that_repeats_itself_is_heard_once_a_second(scene: Scene) -> None:
    """The same envelope over and over: the reader gets it once, and time to think."""
    scene.publish()

    def answer(_: object, context: grpc.ServicerContext) -> Iterator[Message]:
        while context.is_active():
            yield v1.WatchReleasesResponse(sealed_index=scene.store.index("demo"), version=1)

    with (
        Liar(WatchReleases=answer).serving() as address,
        RegistryClient(address, key=scene.signer.public) as client,
    ):
        watched = client.watch("demo", after=0)
        began = time.monotonic()
        heard = [next(watched) for _ in range(4)]
        took = time.monotonic() - began
        watched.close()
    assert heard == [scene.store.index("demo"), None, None, None]
    assert took > 1.9


def test_what_is_not_of_its_form_is_refused(scene: Scene) -> None:
    """When the client is made, with what was expected; a token is not shown."""
    for options, expected in (
        ({"token": "fedlora_x\n"}, "token: letters, digits and signs"),
        ({"token": ""}, "token: letters, digits and signs"),
        ({"ca": b"garbage"}, "ca: certificates in PEM"),
        ({"ca": b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"}, "ca: cert"),
        ({"identity": Identity(certificate=b"", key=b"")}, "identity: certificates in PEM"),
    ):
        with pytest.raises(ReleaseError, match=f"^{expected}") as caught:
            RegistryClient("127.0.0.1:1", key=scene.signer.public, **options)
        assert "fedlora_x" not in str(caught.value)


def test_an_upload_that_broke_is_sent_again(scene: Scene) -> None:
    """From its beginning; what is there afterwards is whole, and there once."""
    folder = large(scene)
    with (
        served(scene.store) as running,
        Line(running.address, cuts=[5 * 2**20]) as line,
        RegistryClient(line.address, key=scene.signer.public) as client,
    ):
        release = scene.publisher_at(client).publish(folder, manifest_of(folder))
    assert line.connections == 2
    assert scene.publisher.index("demo").in_order == [release.id]


def test_a_disk_that_is_full_is_told_and_nothing_stays(scene: Scene, small_disk) -> None:
    """At once, since asking again would not help; with room, the same release comes in."""
    folder = large(scene)
    manifest = manifest_of(folder)
    with (
        served(scene.store) as running,
        RegistryClient(running.address, key=scene.signer.public) as client,
    ):
        publisher = scene.publisher_at(client)
        with (
            small_disk(2**20),
            pytest.raises(ReleaseError, match=r"disk, which may be full.*FAILED_PRECONDITION"),
        ):
            publisher.publish(folder, manifest)
        assert list((scene.store.path / "incoming").glob("[!.]*")) == []
        assert client.names() == []
        publisher.publish(folder, manifest)
        assert client.names() == ["demo"]


def test_a_registry_that_restarts_is_waited_for(scene: Scene) -> None:
    """A watch goes on, too, with what was published meanwhile."""
    scene.publish()
    [port] = free_ports()
    address = f"127.0.0.1:{port}"
    with RegistryClient(address, key=scene.signer.public) as client:
        watched = client.watch("demo", after=0)
        with served(scene.store, address=address):
            assert client.names() == ["demo"]
            next(watched)
        scene.publisher.renew("demo")
        with served(scene.store, address=address):
            assert next(filter(None, watched)) == scene.store.index("demo")
            assert client.names() == ["demo"]
        watched.close()


def test_a_registry_that_is_asked_too_often_is_asked_later(scene: Scene) -> None:
    """The caller notices nothing but time."""
    limits = Limits(rate=10, burst=2)
    with (
        served(scene.store, limits=limits) as running,
        RegistryClient(running.address, key=scene.signer.public) as client,
    ):
        assert [client.names() for _ in range(6)] == [[]] * 6
    assert "RESOURCE_EXHAUSTED" in {line.get("code") for line in running.lines}


def free_ports() -> list[int]:
    """Return a port of loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return [server.getsockname()[1]]


@pytest.mark.usefixtures("impatient")
def test_nobody_there_is_told_with_the_address(scene: Scene) -> None:
    """After a few tries, of each call."""
    [port] = free_ports()
    with RegistryClient(f"127.0.0.1:{port}", key=scene.signer.public) as client:
        for call in (
            client.names,
            lambda: client.index("demo"),
            lambda: next(client.read("ab" * 32, "README.md")),
            lambda: next(client.watch("demo", after=0)),
        ):
            with pytest.raises(
                ReleaseError, match=rf"^127.0.0.1:{port}: .*UNAVAILABLE.*Is the registry running"
            ):
                call()


def test_a_registry_that_does_not_answer_is_given_up(scene: Scene) -> None:
    """After the deadline of a call."""
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        address = f"127.0.0.1:{deaf.getsockname()[1]}"
        limits = Limits(call_s=0.3)
        with RegistryClient(address, key=scene.signer.public, limits=limits) as client:
            began = time.monotonic()
            with pytest.raises(ReleaseError, match="DEADLINE_EXCEEDED"):
                client.names()
    assert time.monotonic() - began < 10


@pytest.mark.usefixtures("impatient")
def test_tls_is_to_the_registry_that_the_authority_signed_for(scene: Scene, tmp_path: Path) -> None:
    """With it all works; with another authority, or without TLS, no call is made."""
    ours, theirs = Authority(tmp_path / "ours"), Authority(tmp_path / "theirs")
    release = scene.publish()
    with served(scene.store, tls=ours.pair("registry")) as running:
        ca = ours.certificate.read_bytes()
        with RegistryClient(running.address, key=scene.signer.public, ca=ca) as client:
            puller = Puller(client, scene.signer.public, home=tmp_path / "elsewhere")
            assert puller.pull("demo").id == release.id
        other = theirs.certificate.read_bytes()
        with (
            RegistryClient(running.address, key=scene.signer.public, ca=other) as client,
            pytest.raises(ReleaseError, match=r"Tls handshake failed.*UNAVAILABLE"),
        ):
            client.names()
        with (
            RegistryClient(running.address, key=scene.signer.public) as client,
            pytest.raises(ReleaseError, match="UNAVAILABLE"),
        ):
            client.names()
    assert {line.get("method") for line in running.lines} == {
        None,
        "ListReleases",
        "GetRelease",
        "DownloadArtifact",
    }


def test_what_a_registry_says_moves_no_cursor() -> None:
    """Its words are printed without control characters, and not at length."""
    assert module._plain("a\x1b[2Jb\nc\u202ed") == "a [2Jb c d"
    assert len(module._plain("x" * 10_000)) == 500


def test_an_address_that_is_none_is_refused(scene: Scene) -> None:
    """When the client is made."""
    with pytest.raises(ReleaseError, match="HOST:PORT"):
        RegistryClient("https://registry.example.org", key=scene.signer.public)
