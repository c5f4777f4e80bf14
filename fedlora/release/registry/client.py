"""The client of a registry: a ``Target`` at a distance.

It asks again, later and later, while the registry cannot be reached or has too much to do, and goes
on with a download where it broke off. Nothing that it is told is checked here: who reads releases
checks all of it.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
from grpc import StatusCode

from fedlora.errors import ReleaseError
from fedlora.registry.v1 import registry_pb2 as v1
from fedlora.registry.v1.registry_pb2_grpc import RegistryStub
from fedlora.release.credentials import as_certificates, as_pair, as_token
from fedlora.release.folder import SIGNATURE
from fedlora.release.index import Index
from fedlora.release.manifest import MANIFEST
from fedlora.release.registry.address import Address
from fedlora.release.registry.limits import CHUNK, CLIENT_OPTIONS, Limits
from fedlora.signing import PublicKey

_WAITS = 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4
"""Seconds before asking again, without any progress between them."""
_PASSING = StatusCode.UNAVAILABLE, StatusCode.RESOURCE_EXHAUSTED
"""Nobody is there, or this was too much at once."""
_BAD_TLS, _TOO_LARGE = "SSL_ERROR_SSL", "larger than max"
"""What gRPC says when that does not pass: somebody is there, and a certificate not good; or a
message is larger than any of a registry."""
_BETWEEN_WATCHES_S = 1.0
_LONGEST_DETAIL = 500
_ADVICE = {
    StatusCode.UNAVAILABLE: "Is the registry running, and are its address and certificate right?",
    StatusCode.DEADLINE_EXCEEDED: "Try again; if it stays so, look at the registry's log.",
    StatusCode.UNAUTHENTICATED: "Its operator gives tokens out: fedlora registry token add.",
    StatusCode.PERMISSION_DENIED: "Its operator gives tokens out: fedlora registry token add.",
    StatusCode.RESOURCE_EXHAUSTED: "Try again later.",
    StatusCode.UNIMPLEMENTED: "Is this a registry of fedlora, and as new as this client?",
}
_ADVICE_TOO_LARGE = "No message of a registry is: is this one of fedlora?"
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Identity:
    """A client certificate and its key, in PEM."""

    certificate: bytes
    key: bytes


class RegistryClient:
    """Reads from a registry, and publishes to it. Close it, or use it in ``with``.

    Args:
        address: ``host:port``.
        key: the publisher's.
        ca: certificates, in PEM, one of which the registry's hangs on; by default those that gRPC
            brings along. On loopback there is no TLS without it.
        token: what the registry asks for.
        identity: a client certificate, where the registry asks for one.
        limits: for how long it waits.

    Raises:
        ReleaseError: the address is none, or something else is not what it is to be.
    """

    def __init__(
        self,
        address: str,
        *,
        key: PublicKey,
        ca: bytes | None = None,
        token: str | None = None,
        identity: Identity | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.address = Address.of(address)
        self.key = key
        self._limits = limits or Limits()
        _require_good(ca=ca, token=token, identity=identity)
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._channel = _channel(self.address, ca=ca, identity=identity)
        self._stub = RegistryStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        self._channel.close()

    def names(self) -> Sequence[str]:
        return list(self._ask(self._stub.ListReleases, v1.ListReleasesRequest()).names)

    def index(self, name: str) -> bytes:
        request = v1.ListReleasesRequest(name=name)
        return bytes(self._ask(self._stub.ListReleases, request).sealed_index)

    def manifest(self, release: str) -> tuple[bytes, bytes]:
        found = self._ask(self._stub.GetRelease, v1.GetReleaseRequest(release=release))
        return found.manifest, found.signature

    def read(self, release: str, file: str, *, offset: int = 0) -> Iterator[bytes]:
        patience = _Patience(self._explained)
        while True:
            request = v1.DownloadArtifactRequest(release=release, file=file, offset=offset)
            try:
                for answer in self._stream(self._stub.DownloadArtifact, request):
                    patience.renew()
                    offset += len(answer.data)
                    yield answer.data
            except grpc.RpcError as error:
                patience.wait(error)
            else:
                return

    def watch(self, name: str, *, after: int) -> Iterator[bytes | None]:
        patience, last = _Patience(self._explained), b""
        while True:
            request = v1.WatchReleasesRequest(name=name, after_version=after)
            try:
                for answer in self._stream(self._stub.WatchReleases, request):
                    patience.renew()
                    after = answer.version
                    if answer.sealed_index != last:
                        last = answer.sealed_index
                        yield last
                    else:  # no registry says the same again and again, but one that means ill
                        yield None
                        time.sleep(_BETWEEN_WATCHES_S)
            except grpc.RpcError as error:
                patience.wait(error)
            else:
                patience.renew()
                yield None
                time.sleep(_BETWEEN_WATCHES_S)

    def publish(self, folder: Path, envelope: bytes) -> None:
        files = json.loads((folder / MANIFEST).read_bytes())["files"].values()
        time_for_it = self._limits.upload_of(sum(file["size"] for file in files))
        until = time.monotonic() + time_for_it  # for all tries together
        self._persist(
            lambda: self._stub.PublishRelease(
                _parts(folder, envelope),
                timeout=max(until - time.monotonic(), 0),
                metadata=self._metadata,
            )
        )

    def commit(self, envelope: bytes) -> None:
        index = Index.unseal(envelope, key=self.key, source="the index")
        newest = self.index(index.name)
        before = Index.unseal(newest, key=self.key, source=f"{self.address}: index of {index.name}")
        if index.releases == before.releases:
            self._ask(self._stub.SetAlias, v1.SetAliasRequest(sealed_index=envelope))
        else:
            self._ask(self._stub.RevokeRelease, v1.RevokeReleaseRequest(sealed_index=envelope))

    def _ask(self, call: Callable[..., Any], request: object) -> Any:  # noqa: ANN401 - the stub's
        return self._persist(
            lambda: call(request, timeout=self._limits.call_s, metadata=self._metadata)
        )

    def _persist(self, call: Callable[[], _T]) -> _T:
        patience = _Patience(self._explained)
        while True:
            try:
                return call()
            except grpc.RpcError as error:
                patience.wait(error)

    def _stream(self, call: Callable[..., Any], request: object) -> Iterator[Any]:
        answers = call(request, timeout=self._limits.stream_s, metadata=self._metadata)
        try:
            yield from answers
        finally:
            answers.cancel()

    def _explained(self, error: grpc.RpcError) -> ReleaseError:
        code, detail = error.code(), _plain(error.details() or "no reason was given")
        advice = _ADVICE_TOO_LARGE if _TOO_LARGE in detail else _ADVICE.get(code, "")
        return ReleaseError(f"{self.address}: {detail} ({code.name}). {advice}".strip())


class _Patience:
    """Waits before a call is made again, and knows when to give up.

    Args:
        explain: turns gRPC's error into ours.
    """

    def __init__(self, explain: Callable[[grpc.RpcError], ReleaseError]) -> None:
        self._explain = explain
        self._waits = iter(_WAITS)
        self._moved = False

    def renew(self) -> None:
        """Begin anew: something has come."""
        self._waits, self._moved = iter(_WAITS), True

    def wait(self, error: grpc.RpcError) -> None:
        """Wait if the error may pass.

        Raises:
            ReleaseError: it does not pass.
        """
        seconds = next(self._waits, None)
        if seconds is None or not self._passes(error):
            raise self._explain(error) from None
        self._moved = False
        time.sleep(seconds)

    def _passes(self, error: grpc.RpcError) -> bool:
        """Tell whether to ask again: also when a stream had its time, and something came of it."""
        if any(words in (error.details() or "") for words in (_BAD_TLS, _TOO_LARGE)):
            return False
        ended = self._moved and error.code() is StatusCode.DEADLINE_EXCEEDED
        return ended or error.code() in _PASSING


def _channel(address: Address, *, ca: bytes | None, identity: Identity | None) -> grpc.Channel:
    """Return a channel: with TLS, but on loopback where no authority is given."""
    if address.is_loopback and ca is None:
        options = [*CLIENT_OPTIONS, ("grpc.enable_http_proxy", 0)]
        return grpc.insecure_channel(str(address), options=options)
    credentials = grpc.ssl_channel_credentials(
        root_certificates=ca,
        private_key=identity.key if identity else None,
        certificate_chain=identity.certificate if identity else None,
    )
    return grpc.secure_channel(str(address), credentials, options=CLIENT_OPTIONS)


def _parts(folder: Path, envelope: bytes) -> Iterator[v1.PublishReleaseRequest]:
    """Yield a release as it is uploaded."""
    payload = (folder / MANIFEST).read_bytes()
    header = v1.ReleaseHeader(manifest=payload, signature=(folder / SIGNATURE).read_bytes())
    yield v1.PublishReleaseRequest(header=header)
    for name in json.loads(payload)["files"]:
        with (folder / name).open("rb") as file:
            data = file.read(CHUNK)
            while True:
                yield v1.PublishReleaseRequest(chunk=v1.FileChunk(file=name, data=data))
                if not (data := file.read(CHUNK)):
                    break
    yield v1.PublishReleaseRequest(sealed_index=envelope)


def _require_good(*, ca: bytes | None, token: str | None, identity: Identity | None) -> None:
    """Do nothing if all that is shown or believed is of its form; errors as of the client."""
    what = "token"
    try:
        if token is not None:
            as_token(token)
        what = "ca"
        if ca is not None:
            as_certificates(ca)
        what = "identity"
        if identity is not None:
            as_pair(identity.certificate, identity.key)
    except ValueError as error:
        raise ReleaseError(f"{what}: {error}.") from None


def _plain(text: str) -> str:
    """Return a registry's words without what moves a terminal's cursor."""
    return "".join(c if c.isprintable() else " " for c in text)[:_LONGEST_DETAIL]
