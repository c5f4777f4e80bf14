"""The door of a registry: who may come in, how often and for how long, and what errors look like.

It knows eight calls; whatever else is asked for is unimplemented. A caller gets a status and a
sentence, never a traceback or a path; the log gets a line for each call.

For gRPC all calls are streams both ways, which nobody sees from outside: so it hands each over as
soon as its headers are there, and this door reads no message before it knows who calls, and waits
for none, nor for a reader, longer than its limits.
"""

import asyncio
import re
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import ExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import grpc
from google.protobuf.message import DecodeError
from grpc import StatusCode

from fedlora.errors import FedloraError, ReleaseError, StorageError
from fedlora.release.registry.allowance import Allowance
from fedlora.release.registry.callers import Caller, Callers, CallersFile, Scope
from fedlora.release.registry.limits import Limits
from fedlora.release.registry.refused import Refused

_REGISTRY = "/fedlora.registry.v1.Registry/"
_BEARER = re.compile("Bearer ([A-Za-z0-9_-]{16,100})")
_NAMES = "x509_subject_alternative_name", "x509_common_name"
"""What gRPC calls the names of a client certificate that it has verified."""

_LONGEST_MESSAGE = 1000

Context = grpc.aio.ServicerContext[Any, Any]


class Tell(Protocol):
    """What takes the log's lines: an event, and what it is about."""

    def __call__(self, event: str, /, **facts: object) -> None: ...


@dataclass(frozen=True, kw_only=True)
class _Call:
    """What a call needs."""

    scope: Scope | None
    """None where everyone may come in."""
    longest: Callable[[Limits], float]
    """Seconds."""


_READ = _Call(scope="read", longest=lambda limits: limits.call_s)
_STREAM = _Call(scope="read", longest=lambda limits: limits.stream_s)
_CHANGE = _Call(scope="publish", longest=lambda limits: limits.call_s)
_UPLOAD = _Call(scope="publish", longest=lambda limits: limits.upload_s)
_HEALTH = _Call(scope=None, longest=lambda limits: limits.call_s)

CALLS: Mapping[str, _Call] = {
    f"{_REGISTRY}ListReleases": _READ,
    f"{_REGISTRY}GetRelease": _READ,
    f"{_REGISTRY}DownloadArtifact": _STREAM,
    f"{_REGISTRY}WatchReleases": _STREAM,
    f"{_REGISTRY}PublishRelease": _UPLOAD,
    f"{_REGISTRY}SetAlias": _CHANGE,
    f"{_REGISTRY}RevokeRelease": _CHANGE,
    "/grpc.health.v1.Health/Check": _HEALTH,
}


class Door(grpc.aio.ServerInterceptor):
    """Stands before each call.

    Args:
        callers: who may call; without a list, whoever reaches the registry.
        limits: what is kept to.
        store: the folder that callers are not told of.
        tell: takes the log's lines.
    """

    def __init__(
        self, callers: CallersFile | None, *, limits: Limits, store: Path, tell: Tell
    ) -> None:
        self._callers, self._limits, self._tell = callers, limits, tell
        self._store = str(store)
        self._allowance = Allowance(limits)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:  # noqa: ANN401 - gRPC's handlers have no type of their own
        method = handler_call_details.method
        if method not in CALLS:
            return None
        handler = await continuation(handler_call_details)
        return grpc.stream_stream_rpc_method_handler(
            self._answering(method, handler), response_serializer=handler.response_serializer
        )

    def _answering(self, method: str, handler: Any) -> Any:  # noqa: ANN401 - as above
        behaviour = handler.stream_unary or handler.unary_stream or handler.unary_unary

        async def answer(_: object, context: Context) -> None:
            async with self._visit(method, context):
                messages = self._messages(context, handler.request_deserializer)
                request = messages if handler.request_streaming else await anext(messages, None)
                if request is None:
                    raise Refused(StatusCode.INVALID_ARGUMENT, "A message was expected.")
                if not handler.response_streaming:
                    await context.write(await behaviour(request, context))
                    return
                async with aclosing(behaviour(request, context)) as responses:
                    async for response in responses:
                        await context.write(response)

        return answer

    async def _messages(
        self, context: Context, parse: Callable[[bytes], Any]
    ) -> AsyncIterator[Any]:
        """Yield what a caller sends.

        Raises:
            Refused: it is something else.
            TimeoutError: it does not come.
        """
        while True:
            async with asyncio.timeout(self._limits.idle_s):
                message = await context.read()
            if message is grpc.aio.EOF:
                return
            try:
                parsed = parse(message)
            except DecodeError:
                raise Refused(
                    StatusCode.INVALID_ARGUMENT, "This is no message of the protocol."
                ) from None
            yield parsed

    @asynccontextmanager
    async def _visit(self, method: str, context: Context) -> AsyncIterator[None]:
        """Let a caller in for one call, and turn what goes wrong into a status."""
        call, began = CALLS[method], time.monotonic()
        facts = {"method": method.rpartition("/")[2], "host": _host(context)}

        def tell(event: str) -> None:
            if call.scope is not None:
                self._tell(event, **facts, seconds=round(time.monotonic() - began, 3))

        with ExitStack() as place:
            try:
                facts["caller"] = caller = self._admit(call, context)
                place.enter_context(self._allowance.place(caller))
                async with asyncio.timeout(call.longest(self._limits)):
                    yield
            except asyncio.CancelledError:  # the caller has gone
                tell("call broken off")
                raise
            except grpc.aio.AbortError:  # health has said no by itself
                raise
            except Exception as error:  # noqa: BLE001 - whatever it is, the caller gets no traceback
                refused = self._refusal(error, facts)
                await context.abort(
                    refused.code, str(refused)
                )  # until it is told, it has its place
        tell("call")

    def _refusal(self, error: Exception, facts: Mapping[str, str]) -> Refused:
        """Return what the caller is told; the log is told more."""
        refused = _refused(error)
        told: dict[str, object] = {**facts, "code": refused.code.name, "reason": str(error)}
        if refused.times > 1:
            told["times"] = refused.times
        if refused.code is StatusCode.INTERNAL:
            told["traceback"] = "".join(traceback.format_exception(error))
        if refused.times:
            self._tell("call refused", **told)
        message = str(refused).replace(self._store, "the registry")[:_LONGEST_MESSAGE]
        return Refused(refused.code, message)

    def _admit(self, call: _Call, context: Context) -> str:
        """Return who calls, if they may.

        Raises:
            Refused: nobody known, without the scope, or too often.
            ReleaseError: nobody can be known.
        """
        stranger = f"host {_host(context)}"
        if call.scope is None or self._callers is None:
            self._allowance.take(stranger)
            return stranger
        try:
            caller = _known(self._callers.callers(), context)
        except ReleaseError:
            self._allowance.take(stranger)
            raise
        self._allowance.take(caller.name if caller else stranger)
        if caller is None:
            raise Refused(
                StatusCode.UNAUTHENTICATED,
                "A token that this registry knows was expected, or a certificate.",
            )
        if not caller.may(call.scope):
            raise Refused(
                StatusCode.PERMISSION_DENIED,
                f"{caller.name} may not do this: it needs {call.scope}.",
            )
        return caller.name


def _refused(error: Exception) -> Refused:
    """Return what a caller is told of an error: nothing that is in the registry's files."""
    match error:
        case Refused():
            return error
        case TimeoutError():
            return Refused(StatusCode.DEADLINE_EXCEEDED, "This took too long. Ask again.")
        case StorageError():
            return Refused(
                StatusCode.FAILED_PRECONDITION,
                "The registry cannot write or read its disk, which may be full; its operator finds "
                "more in its log.",
            )
        case FedloraError():
            return Refused(
                StatusCode.FAILED_PRECONDITION,
                "The registry's own files are not good; its operator finds which in its log.",
            )
    return Refused(StatusCode.INTERNAL, "The registry failed; its operator finds why in its log.")


def _known(callers: Callers, context: Context) -> Caller | None:
    """Return whose token or certificate comes with a call."""
    metadata = context.invocation_metadata() or ()
    shown = [str(value) for key, value in metadata if key == "authorization"]
    if len(shown) == 1 and (match := _BEARER.fullmatch(shown[0])):
        return callers.with_token(match[1])
    proven = context.auth_context()
    return callers.with_certificate(
        name.decode(errors="replace") for key in _NAMES for name in proven.get(key, ())
    )


def _host(context: Context) -> str:
    """Return where a call comes from: gRPC's ``ipv4:host:port``, without the port."""
    return str(context.peer()).rpartition(":")[0]
