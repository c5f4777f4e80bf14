"""Who may call a registry, how often and for how long; and what errors look like."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from threading import Event

import grpc
import pytest
from grpc import StatusCode
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from fedlora.errors import ReleaseError
from fedlora.registry.v1 import registry_pb2 as v1
from fedlora.registry.v1.registry_pb2 import DESCRIPTOR
from fedlora.registry.v1.registry_pb2_grpc import RegistryStub
from fedlora.release.home import target_of
from fedlora.release.registry import client as client_module
from fedlora.release.registry.callers import Callers, CallersFile
from fedlora.release.registry.client import RegistryClient
from fedlora.release.registry.door import CALLS
from fedlora.release.registry.limits import Limits
from fedlora.release.registry_file import RegistryFile
from simulations.published import Scene, manifest_of
from tests.registry import Authority, served

READER, PUBLISHER = "fedlora_reader-reader-reader", "fedlora_publisher-publisher"
LIST = v1.ListReleasesRequest()


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene.new(tmp_path)


@pytest.fixture
def callers(tmp_path: Path) -> CallersFile:
    """A reader and a publisher with tokens, and an engine with a certificate."""
    path = tmp_path / "callers.yaml"
    (
        Callers(callers=())
        .adding("reader", scope="read", token=READER)
        .adding("publisher", scope="publish", token=PUBLISHER)
        .adding("engine", scope="read", token=None)
        .write(path)
    )
    return CallersFile(path)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the client give up at once."""
    monkeypatch.setattr(client_module, "_WAITS", ())


@contextmanager
def connected(address: str) -> Iterator[RegistryStub]:
    """Yield a bare stub."""
    with grpc.insecure_channel(address) as channel:
        yield RegistryStub(channel)


def code_of(call: grpc.UnaryUnaryMultiCallable, *authorization: str) -> StatusCode:
    """Return how a call that lists names ends."""
    metadata = [("authorization", each) for each in authorization]
    try:
        call(LIST, metadata=metadata)
    except grpc.RpcError as error:
        return error.code()
    return StatusCode.OK


def test_a_call_needs_a_token_that_is_known(scene: Scene, callers: CallersFile) -> None:
    """Nothing else opens the door: no token, another, two, another scheme, odd letters."""
    with served(scene.store, callers=callers) as running, connected(running.address) as stub:
        call = stub.ListReleases
        assert code_of(call, f"Bearer {READER}") is StatusCode.OK
        for wrong in (
            [],
            ["Bearer "],
            [READER],
            [f"Basic {READER}"],
            [f"Bearer {READER}x"],
            [f"bearer {READER}"],
            [f"Bearer {READER}", f"Bearer {READER}"],
            [f"Bearer {'x' * 5000}"],
        ):
            assert code_of(call, *wrong) is StatusCode.UNAUTHENTICATED


def test_every_call_but_health_asks_who_calls(scene: Scene, callers: CallersFile) -> None:
    """Also the streams; and a reader's token publishes nothing."""
    paths = [path for path, call in CALLS.items() if call.scope]
    writes = [path for path, call in CALLS.items() if call.scope == "publish"]
    assert len(paths) == len(DESCRIPTOR.services_by_name["Registry"].methods)
    assert {path.rpartition("/")[2] for path in writes} == {
        "PublishRelease",
        "SetAlias",
        "RevokeRelease",
    }
    with (
        served(scene.store, callers=callers) as running,
        grpc.insecure_channel(running.address) as channel,
    ):
        for path in paths:
            answer = channel.stream_stream(path)
            with pytest.raises(grpc.RpcError) as caught:
                list(answer(iter([b""])))
            assert caught.value.code() is StatusCode.UNAUTHENTICATED
        for path in writes:
            answer = channel.stream_stream(path)
            metadata = [("authorization", f"Bearer {READER}")]
            with pytest.raises(grpc.RpcError, match="reader may not do this") as caught:
                list(answer(iter([b""]), metadata=metadata))
            assert caught.value.code() is StatusCode.PERMISSION_DENIED


def test_a_publisher_s_token_publishes_and_reads(scene: Scene, callers: CallersFile) -> None:
    """The client sends it with each call."""
    with (
        served(scene.store, callers=callers) as running,
        RegistryClient(running.address, key=scene.signer.public, token=PUBLISHER) as client,
    ):
        scene.publisher_at(client).publish(scene.draft(), manifest_of(scene.draft()))
        assert client.names() == ["demo"]
    assert {line.get("caller", "publisher") for line in running.lines} == {"publisher"}


def test_who_is_removed_is_out_at_the_next_call(scene: Scene, callers: CallersFile) -> None:
    """Without a restart."""
    with served(scene.store, callers=callers) as running, connected(running.address) as stub:
        assert code_of(stub.ListReleases, f"Bearer {READER}") is StatusCode.OK
        callers.callers().removing("reader").write(scene.path / "callers.yaml")
        assert code_of(stub.ListReleases, f"Bearer {READER}") is StatusCode.UNAUTHENTICATED


@pytest.mark.usefixtures("impatient")
def test_a_certificate_stands_for_its_name(
    scene: Scene, callers: CallersFile, tmp_path: Path
) -> None:
    """Of the authority that is asked for: one that is listed may call, another one may not."""
    ours, theirs = Authority(tmp_path / "ours"), Authority(tmp_path / "theirs")
    tls = ours.pair("registry", client_ca=ours.certificate)

    def client(authority: Authority, name: str) -> RegistryClient:
        pair, path = authority.pair(name), tmp_path / f"{name}.yaml"
        RegistryFile(
            publisher=scene.signer.public.text,
            address=running.address,
            ca_certificate=ours.certificate.read_text(),
            client_certificate=pair.certificate.read_text(),
            client_key=pair.key.read_text(),
        ).write(path)
        found, _ = target_of(path)
        assert isinstance(found, RegistryClient)
        return found

    with served(scene.store, callers=callers, tls=tls) as running:
        with client(ours, "engine") as engine:
            assert engine.names() == []
        for name in ("other", "reader"):  # reader has a token, so that no certificate is its
            with client(ours, name) as other, pytest.raises(ReleaseError, match="UNAUTHENTICATED"):
                other.names()
        with (
            client(theirs, "engine") as stranger,
            pytest.raises(ReleaseError, match="UNAVAILABLE"),
        ):
            stranger.names()


def test_health_is_told_to_everyone_and_nothing_else_is(scene: Scene, callers: CallersFile) -> None:
    """A load balancer has no token. There is no reflection, and no other method."""
    name = DESCRIPTOR.services_by_name["Registry"].full_name
    with (
        served(scene.store, callers=callers) as running,
        grpc.insecure_channel(running.address) as channel,
    ):
        for service in ("", name):
            answer = HealthStub(channel).Check(HealthCheckRequest(service=service))
            assert answer.status == HealthCheckResponse.SERVING
        for path in (
            "/grpc.health.v1.Health/Watch",
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            "/fedlora.registry.v1.Registry/Other",
            "/fedlora.registry.v1.Registry/listReleases",
        ):
            answer = channel.stream_stream(path)
            with pytest.raises(grpc.RpcError) as caught:
                list(answer(iter([b""]), metadata=[("authorization", f"Bearer {PUBLISHER}")]))
            assert caught.value.code() is StatusCode.UNIMPLEMENTED


def test_a_caller_that_asks_too_often_is_refused(scene: Scene, callers: CallersFile) -> None:
    """Strangers too; others notice nothing."""
    limits = Limits(rate=0.001, burst=2)
    with (
        served(scene.store, callers=callers, limits=limits) as running,
        connected(running.address) as stub,
    ):
        ok, no, unknown = (
            StatusCode.OK,
            StatusCode.RESOURCE_EXHAUSTED,
            StatusCode.UNAUTHENTICATED,
        )
        assert [code_of(stub.ListReleases, f"Bearer {READER}") for _ in range(3)] == [ok, ok, no]
        assert [code_of(stub.ListReleases) for _ in range(3)] == [unknown, unknown, no]
        assert code_of(stub.ListReleases, f"Bearer {PUBLISHER}") is ok


def test_a_caller_has_only_so_many_streams_and_none_is_endless(scene: Scene) -> None:
    """A place is free again once a stream has ended, by itself at the latest."""
    scene.publish()
    limits = Limits(calls_each=1, stream_s=1, watch_s=30)
    own = [("grpc.use_local_subchannel_pool", 1)]  # a connection of its own
    with (
        served(scene.store, limits=limits) as running,
        connected(running.address) as first,
        grpc.insecure_channel(running.address, options=own) as channel,
    ):
        second = RegistryStub(channel)
        watched = first.WatchReleases(v1.WatchReleasesRequest(name="demo"))
        next(watched)
        assert code_of(second.ListReleases) is StatusCode.RESOURCE_EXHAUSTED
        with pytest.raises(grpc.RpcError) as caught:
            list(watched)
        assert caught.value.code() is StatusCode.DEADLINE_EXCEEDED
        assert code_of(second.ListReleases) is StatusCode.OK


def never(over: Event) -> Iterator[bytes]:
    """Yield nothing, until it is over."""
    over.wait(60)
    yield from ()


def test_who_sends_no_message_is_refused_as_anybody_is(scene: Scene, callers: CallersFile) -> None:
    """A stranger at once; who may call has so long for it. Neither keeps others out."""
    limits, over = Limits(calls=4, idle_s=1), Event()
    with (
        served(scene.store, callers=callers, limits=limits) as running,
        grpc.insecure_channel(running.address) as channel,
    ):
        for path in CALLS:
            silent = channel.stream_stream(path)
            strangers = [silent(never(over)) for _ in range(6)]
            codes = {call.code() for call in strangers}
            health = "Health" in path
            assert codes <= {
                StatusCode.UNAUTHENTICATED,
                *([StatusCode.DEADLINE_EXCEEDED, StatusCode.RESOURCE_EXHAUSTED] if health else []),
            }
            metadata = [("authorization", f"Bearer {PUBLISHER}")]
            assert silent(never(over), metadata=metadata).code() is StatusCode.DEADLINE_EXCEEDED
        assert code_of(RegistryStub(channel).ListReleases, f"Bearer {READER}") is StatusCode.OK
        over.set()


def test_garbage_is_refused_and_told_like_all_else(scene: Scene) -> None:
    """It is the caller's fault: neither a fault of the registry, nor a traceback in its log."""
    with served(scene.store) as running, grpc.insecure_channel(running.address) as channel:
        for path in CALLS:
            with pytest.raises(grpc.RpcError) as caught:
                list(channel.stream_stream(path)(iter([b"\xff\xff"])))
            assert caught.value.code() is StatusCode.INVALID_ARGUMENT
            with pytest.raises(grpc.RpcError) as caught:
                list(channel.stream_stream(path)(iter([])))
            assert caught.value.code() is StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.RpcError) as caught:
            HealthStub(channel).Check(HealthCheckRequest(service="other"))
        assert caught.value.code() is StatusCode.NOT_FOUND
    refused = [line for line in running.lines if line["event"] == "call refused"]
    assert [line["method"] for line in refused] == [
        path.rpartition("/")[2] for path in CALLS for _ in range(2)
    ]
    assert "traceback" not in str(running.lines)


def test_a_reader_that_does_not_read_keeps_nobody_out(scene: Scene, callers: CallersFile) -> None:
    """Its places are its own; they are free again when its connection is ended, at the latest."""
    folder = scene.draft()
    with (folder / "README.md").open("ab") as file:
        file.truncate(24 * 2**20)
    release = scene.publisher.publish(folder, manifest_of(folder)).id
    limits = Limits(calls=4, calls_each=2, stream_s=1, upload_s=1)
    own = [("grpc.use_local_subchannel_pool", 1)]
    request = v1.DownloadArtifactRequest(release=release, file="README.md")
    metadata = [("authorization", f"Bearer {READER}")]
    with (
        served(scene.store, callers=callers, limits=limits) as running,
        ExitStack() as stack,
        connected(running.address) as stub,
    ):
        began, stalled = time.monotonic(), []
        while time.monotonic() - began < 2:
            channel = stack.enter_context(grpc.insecure_channel(running.address, options=own))
            stub_of_reader = RegistryStub(channel)
            for _ in range(2):
                call = stub_of_reader.DownloadArtifact(request, metadata=metadata)
                with suppress(grpc.RpcError):
                    next(call)
                    stalled.append(call)
            assert code_of(stub.ListReleases, f"Bearer {PUBLISHER}") is StatusCode.OK
            time.sleep(0.2)
        assert len(stalled) == 2
        until = time.monotonic() + 30
        while code_of(stub.ListReleases, f"Bearer {READER}") is not StatusCode.OK:
            assert time.monotonic() < until
            time.sleep(0.1)


def test_a_message_that_is_too_large_is_refused(scene: Scene) -> None:
    """Before it is read."""
    with served(scene.store) as running, connected(running.address) as stub:
        with pytest.raises(grpc.RpcError) as caught:
            stub.SetAlias(v1.SetAliasRequest(sealed_index=bytes(5 * 2**20)))
        assert caught.value.code() is StatusCode.RESOURCE_EXHAUSTED


def test_a_failure_shows_the_caller_nothing(scene: Scene) -> None:
    """No traceback and no path; the log has them."""
    release = scene.publish()
    file = scene.store.path / "releases" / release.id / "README.md"
    request = v1.DownloadArtifactRequest(release=release.id, file="README.md")
    codes, texts = [], []
    with served(scene.store) as running, connected(running.address) as stub:
        for make in (Path.mkdir, lambda path: path.symlink_to("/proc/self/mem")):
            file.unlink()
            make(file)
            with pytest.raises(grpc.RpcError) as caught:
                list(stub.DownloadArtifact(request))
            codes.append(caught.value.code())
            texts.append(caught.value.details())
            if file.is_dir():
                file.rmdir()
                file.touch()
    assert codes == [StatusCode.INTERNAL] * 2
    assert not [text for text in texts if "README" in text or release.id in text]
    first, second = [line for line in running.lines if line["event"] == "call refused"]
    assert "IsADirectoryError" in first["traceback"]
    assert "Input/output error" in second["traceback"]


def test_a_list_of_callers_that_breaks_is_read_to_nobody(
    scene: Scene, callers: CallersFile
) -> None:
    """Whoever calls is counted first and told one sentence; only the log says what is wrong."""
    limits = Limits(rate=0.001, burst=2)
    secret = "fedlora_pasted-by-mistake"
    with (
        served(scene.store, callers=callers, limits=limits) as running,
        connected(running.address) as stub,
    ):
        (scene.path / "callers.yaml").write_text(f"callers: [{{name: ci, token: {secret}}}]")
        told = []
        for _ in range(3):
            with pytest.raises(grpc.RpcError) as caught:
                stub.ListReleases(LIST, metadata=[("authorization", f"Bearer {READER}")])
            told.append((caught.value.code(), caught.value.details()))
    broken = "The registry's own files are not good; its operator finds which in its log."
    assert told[:2] == [(StatusCode.FAILED_PRECONDITION, broken)] * 2
    assert told[2][0] is StatusCode.RESOURCE_EXHAUSTED
    assert any("callers.yaml" in str(line.get("reason")) for line in running.lines)


def test_the_log_has_a_line_for_each_call_and_no_token(scene: Scene, callers: CallersFile) -> None:
    """Who, what, how long, and why not."""
    with served(scene.store, callers=callers) as running, connected(running.address) as stub:
        code_of(stub.ListReleases, f"Bearer {READER}")
        code_of(stub.ListReleases, f"Bearer {READER}x")
    calls = [line for line in running.lines if "method" in line]
    assert [(c["event"], c.get("caller"), c.get("code")) for c in calls] == [
        ("call", "reader", None),
        ("call refused", None, "UNAUTHENTICATED"),
    ]
    assert READER not in str(running.lines)


def test_tls_that_is_none_does_not_start(scene: Scene, tmp_path: Path) -> None:
    """An empty authority would let everybody's certificate in; the file is named."""
    authority = Authority(tmp_path / "ca")
    empty, other = tmp_path / "empty.pem", authority.pair("other")
    empty.touch()
    good = authority.pair("registry")
    for tls, expected in (
        (replace(good, client_ca=empty), "empty.pem: certificates in PEM"),
        (replace(good, certificate=empty), "empty.pem, .*registry.key: certificates in PEM"),
        (replace(good, key=empty), "registry.crt, .*empty.pem: a private key in PEM"),
        (replace(good, key=other.key), "registry.crt, .*other.key: the first certificate is of"),
    ):
        with pytest.raises(ReleaseError, match=expected), served(scene.store, tls=tls):
            pytest.fail("it started")


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "registry.example.org:0"])
def test_beyond_loopback_there_is_tls_and_a_list_of_callers(
    scene: Scene, callers: CallersFile, tmp_path: Path, address: str
) -> None:
    """Or the registry does not start."""
    tls = Authority(tmp_path / "ca").pair("registry")
    for options in ({}, {"tls": tls}, {"callers": callers}):
        with (
            pytest.raises(ReleaseError, match="needs a certificate and a list of callers"),
            served(scene.store, address=address, **options),
        ):
            pytest.fail("it started")
