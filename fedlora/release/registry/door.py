"""The door of a registry: who may come in, how often and for how long, and what errors look like.

It knows eight calls; whatever else is asked for is unimplemented. A caller gets a status and a
sentence, never a traceback or a path; the log gets a line for each call.
"""

import asyncio
import re
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import grpc
from grpc import StatusCode

from fedlora.errors import FedloraError
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
        behaviour = handler.stream_unary or handler.unary_stream or handler.unary_unary
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._streaming(method, behaviour),
                request_deserializer=handler.request_deserializer,
                response_serializer=handler.response_serializer,
            )
        make = (
            grpc.stream_unary_rpc_method_handler
            if handler.request_streaming
            else grpc.unary_unary_rpc_method_handler
        )
        return make(
            self._answering(method, behaviour),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _answering(self, method: str, behaviour: Any) -> Any:  # noqa: ANN401 - as above
        async def answer(request: Any, context: Context) -> Any:  # noqa: ANN401
            async with self._visit(method, context):
                return await behaviour(request, context)

        return answer

    def _streaming(self, method: str, behaviour: Any) -> Any:  # noqa: ANN401
        async def stream(request: Any, context: Context) -> AsyncIterator[Any]:  # noqa: ANN401
            async with self._visit(method, context):
                async for response in behaviour(request, context):
                    yield response

        return stream

    @asynccontextmanager
    async def _visit(self, method: str, context: Context) -> AsyncIterator[None]:
        """Let a caller in for one call, and turn what goes wrong into a status."""
        call, began = CALLS[method], time.monotonic()
        facts = {"method": method.rpartition("/")[2], "host": _host(context)}
        try:
            facts["caller"] = caller = self._admit(call, context)
            with self._allowance.place(caller):
                async with asyncio.timeout(call.longest(self._limits)):
                    yield
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller gets no traceback
            refused = _refusal(error)
            if refused.code is StatusCode.INTERNAL:
                facts["traceback"] = traceback.format_exc()
            message = str(refused).replace(self._store, "the registry")[:_LONGEST_MESSAGE]
            self._tell("call refused", **facts, code=refused.code.name, reason=message)
            await context.abort(refused.code, message)
        if call.scope is not None:
            self._tell("call", **facts, seconds=round(time.monotonic() - began, 3))

    def _admit(self, call: _Call, context: Context) -> str:
        """Return who calls, if they may.

        Raises:
            Refused: nobody known, without the scope, or too often.
        """
        stranger = f"host {_host(context)}"
        if call.scope is None or self._callers is None:
            self._allowance.take(stranger)
            return stranger
        caller = _known(self._callers.callers(), context)
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


def _refusal(error: Exception) -> Refused:
    match error:
        case Refused():
            return error
        case TimeoutError():
            return Refused(StatusCode.DEADLINE_EXCEEDED, "This took too long. Ask again.")
        case FedloraError():
            return Refused(StatusCode.FAILED_PRECONDITION, str(error))
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
