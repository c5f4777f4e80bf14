"""The calls of a registry, over a store. Callers, rates and times are the door's to judge."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractContextManager, suppress
from typing import TypeVar

from grpc import StatusCode

from fedlora.registry.v1 import registry_pb2 as v1
from fedlora.registry.v1.registry_pb2_grpc import RegistryServicer
from fedlora.release.entries import Published
from fedlora.release.folder import signed_manifest
from fedlora.release.index import Index
from fedlora.release.manifest import Manifest
from fedlora.release.registry.door import Context
from fedlora.release.registry.incoming import Incoming, Upload
from fedlora.release.registry.limits import CHUNK, Limits
from fedlora.release.registry.refused import Refused, refusing
from fedlora.release.store import Store
from fedlora.sections import NAME

_NAME = re.compile(NAME)
_RELEASE = re.compile("[0-9a-f]{64}")
_LOOK = 1.0
"""Seconds between looks for a new index."""

_T = TypeVar("_T")
_Parts = AsyncIterator[v1.PublishReleaseRequest]


class Service(RegistryServicer):
    """Answers from a store; it holds no private key, and keeps only what the publisher signed.

    Args:
        store: whose files it serves.
        incoming: where uploads wait until they are whole.
        limits: of sizes and times.
    """

    def __init__(self, store: Store, *, incoming: Incoming, limits: Limits) -> None:
        self._store, self._incoming, self._limits = store, incoming, limits
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """End the watches; their readers ask again."""
        self._stopping.set()

    async def ListReleases(
        self, request: v1.ListReleasesRequest, _: Context
    ) -> v1.ListReleasesResponse:
        if not request.HasField("name"):
            return v1.ListReleasesResponse(names=await asyncio.to_thread(self._store.names))
        return v1.ListReleasesResponse(
            sealed_index=await asyncio.to_thread(self._newest, request.name)
        )

    async def GetRelease(self, request: v1.GetReleaseRequest, _: Context) -> v1.GetReleaseResponse:
        release = _require_release(request.release)
        with refusing(StatusCode.NOT_FOUND):
            manifest, signature = await asyncio.to_thread(self._store.manifest, release)
        return v1.GetReleaseResponse(manifest=manifest, signature=signature)

    async def DownloadArtifact(
        self, request: v1.DownloadArtifactRequest, _: Context
    ) -> AsyncIterator[v1.DownloadArtifactResponse]:
        release = _require_release(request.release)
        if request.offset > self._limits.release:
            raise Refused(StatusCode.OUT_OF_RANGE, "No file is that long.")
        with refusing(StatusCode.NOT_FOUND):
            content = await asyncio.to_thread(self._store.open, release, request.file)
        with content:
            content.seek(request.offset)
            buffer = bytearray(CHUNK)  # the same for all: fresh memory costs more than reading
            while size := await _settled(content.readinto, buffer):
                yield v1.DownloadArtifactResponse(data=bytes(memoryview(buffer)[:size]))

    async def WatchReleases(
        self, request: v1.WatchReleasesRequest, _: Context
    ) -> AsyncIterator[v1.WatchReleasesResponse]:
        await asyncio.to_thread(self._newest, request.name)  # or there is nothing to watch
        clock, version = asyncio.get_running_loop().time, request.after_version
        until = clock() + self._limits.watch_s
        while clock() < until and not self._stopping.is_set():
            envelopes = self._store.since(request.name, after=version)
            while envelope := await asyncio.to_thread(next, envelopes, None):
                version += 1
                yield v1.WatchReleasesResponse(sealed_index=envelope, version=version)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), _LOOK)

    async def PublishRelease(self, requests: _Parts, _: Context) -> v1.PublishReleaseResponse:
        header = (await _part(requests)).header
        manifest = self._signed(header)
        async with asyncio.timeout(self._limits.upload_of(manifest.size)):
            with self._upload(manifest, header.signature) as upload:
                while (part := await _part(requests)).WhichOneof("part") == "chunk":
                    await _settled(upload.write, part.chunk.file, part.chunk.data)
                await _settled(self._publish, upload, part.sealed_index)
        return v1.PublishReleaseResponse()

    async def SetAlias(self, request: v1.SetAliasRequest, _: Context) -> v1.SetAliasResponse:
        await _settled(self._commit, request.sealed_index, _only_aliases)
        return v1.SetAliasResponse()

    async def RevokeRelease(
        self, request: v1.RevokeReleaseRequest, _: Context
    ) -> v1.RevokeReleaseResponse:
        await _settled(self._commit, request.sealed_index, _only_revocations)
        return v1.RevokeReleaseResponse()

    def _signed(self, header: v1.ReleaseHeader) -> Manifest:
        """Return the manifest of what is about to come; without a good one nothing is taken.

        Raises:
            Refused: it is another publisher's, or the release is too large.
        """
        with refusing(StatusCode.INVALID_ARGUMENT):
            manifest = signed_manifest(
                header.manifest, header.signature, key=self._store.key, source="the manifest"
            )
        if manifest.size > self._limits.release:
            raise Refused(
                StatusCode.INVALID_ARGUMENT,
                f"The release has {manifest.size:,} bytes; this registry takes "
                f"{self._limits.release:,}.",
            )
        return manifest

    def _upload(self, manifest: Manifest, signature: bytes) -> AbstractContextManager[Upload]:
        """Return where a release goes; nothing is written of one that is there.

        Its header is no secret, and good for as long as the publisher's key is.
        """
        if self._store.has(manifest.release):
            return Upload.again(self._store.path / "releases" / manifest.release, manifest)
        return self._incoming.upload(manifest, signature)

    def _publish(self, upload: Upload, envelope: bytes) -> None:
        if self._is_sent_again(self._unsealed(envelope), envelope):
            return
        upload.finish()
        with refusing(StatusCode.ABORTED):
            self._store.adopt(upload.folder, envelope)

    def _commit(self, envelope: bytes, is_fit: Callable[[Index, Index], bool]) -> None:
        index = self._unsealed(envelope)
        if self._is_sent_again(index, envelope):
            return
        newest = self._newest(index.name)
        before = Index.unseal(newest, key=self._store.key, source="the newest index")
        with refusing(StatusCode.ABORTED):
            index.require_follows(before)
        if not is_fit(before, index):
            raise Refused(
                StatusCode.INVALID_ARGUMENT,
                "SetAlias takes an index in which no release has changed, RevokeRelease one in "
                "which releases are revoked and nothing else has changed; this is neither's.",
            )
        with refusing(StatusCode.ABORTED):
            self._store.commit(envelope)

    def _unsealed(self, envelope: bytes) -> Index:
        with refusing(StatusCode.INVALID_ARGUMENT):
            return Index.unseal(envelope, key=self._store.key, source="the index")

    def _newest(self, name: str) -> bytes:
        if not _NAME.fullmatch(name):
            raise Refused(StatusCode.INVALID_ARGUMENT, f"{name!r:.80} is no name.")
        with refusing(StatusCode.NOT_FOUND):
            return self._store.index(name)

    def _is_sent_again(self, index: Index, envelope: bytes) -> bool:
        """Tell whether an index was taken, whatever has come after it."""
        return next(self._store.since(index.name, after=index.version - 1), None) == envelope


async def _part(requests: _Parts) -> v1.PublishReleaseRequest:
    """Return the next part of an upload.

    Raises:
        Refused: it has ended before its time.
    """
    part = await anext(requests, None)
    if part is None:
        raise Refused(
            StatusCode.INVALID_ARGUMENT,
            "A release comes as its header, its files and, last, the index that lists it.",
        )
    return part


def _only_aliases(before: Index, after: Index) -> bool:
    return before.releases == after.releases


def _only_revocations(before: Index, after: Index) -> bool:
    return (before.aliases, _unrevoked(before)) == (after.aliases, _unrevoked(after))


def _unrevoked(index: Index) -> Mapping[str, Published]:
    return {r: e.model_copy(update={"revoked": None}) for r, e in index.releases.items()}


def _require_release(text: str) -> str:
    if not _RELEASE.fullmatch(text):
        raise Refused(
            StatusCode.INVALID_ARGUMENT, f"{text!r:.80}: 64 digits of hexadecimal were expected."
        )
    return text


async def _settled(work: Callable[..., _T], *arguments: object) -> _T:
    """Run something in a thread; a call that breaks off waits for it, before it tidies up."""
    running = asyncio.get_running_loop().run_in_executor(None, work, *arguments)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise
