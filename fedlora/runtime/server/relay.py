"""What the front lets through to SuperLink, and how: the calls of a SuperNode, and nothing else.

Requests are made anew, from a table's path, a few headers and the body as it comes: nothing that
a caller writes decides where a request goes or how it is framed.
"""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace

import httpx
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from fedlora.errors import EnrolmentError
from fedlora.runtime.processes import log
from fedlora.runtime.server.caller import PUBLIC_KEY, SIGNATURE, TIMESTAMP, Callers
from fedlora.runtime.server.configuration import Configuration
from fedlora.runtime.server.folder import ServerFolder

_KIB = 1024
_MIB = 1024 * _KIB

FLEET: Mapping[str, int] = {
    "/v1/fleet/activate-node": 64 * _KIB,
    "/v1/fleet/deactivate-node": 64 * _KIB,
    "/v1/fleet/send-node-heartbeat": 64 * _KIB,
    "/v1/fleet/pull-messages": 64 * _KIB,
    "/v1/fleet/push-messages": _MIB,
    "/v1/fleet/get-run": 64 * _KIB,
    "/v1/fleet/get-fab": 64 * _KIB,
    "/v1/fleet/push-object": 8 * _MIB,
    "/v1/fleet/pull-object": 64 * _KIB,
    "/v1/fleet/confirm-message-received": 64 * _KIB,
}
"""The calls that a SuperNode with a key makes, and the largest body of each, in bytes.

Flower's fleet router has two more, register-node and unregister-node: here the operator does
both. An object is a chunk of at most 5 MiB.
"""

_PULL, _CONFIRM = "/v1/fleet/pull-messages", "/v1/fleet/confirm-message-received"
_PAUSES_S = (0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 1, 1, 1)
"""Between looks for a message; their sum is how long a site is kept waiting for one.

A SuperNode that gets no message sleeps for 3 s: these would be most of an empty round.
"""
_MOST_GIVEN = 3
"""How often a site is given a message that it does not confirm."""

_REQUEST_HEADERS = (
    "content-type",
    "accept",
    PUBLIC_KEY,
    SIGNATURE,
    TIMESTAMP,
    "flwr-package-name",
    "flwr-package-version",
    "flwr-component-name",
)
_RESPONSE_HEADERS = (
    "content-type",
    "content-length",
    "retry-after",
    "flwr-version-incompatibility-message",
)
_LONGEST_EXCHANGE_S = 600
"""A chunk on a line of 72 kbit/s."""
_RETRY_AFTER_S = 3
_HEALTH_S = 1
"""How long an answer about SuperLink's health is good for."""


def refuse(status: int, reason: str, *, headers: Mapping[str, str] | None = None) -> Response:
    """Return a refusal that also closes the connection, on which an unread body may wait."""
    closing = {"connection": "close", **(headers or {})}
    return JSONResponse({"error": reason}, status_code=status, headers=closing)


class SuperLink:
    """The aggregator's SuperLink, over TLS on loopback, trusting the aggregator's CA alone."""

    def __init__(self, folder: ServerFolder) -> None:
        self._client = httpx.AsyncClient(
            base_url=f"https://{Configuration.read(folder.configuration).superlink_address}",
            verify=ssl.create_default_context(cafile=str(folder.ca_certificate)),
            trust_env=False,
            timeout=httpx.Timeout(60, connect=5, pool=5),
            # uvicorn closes an idle connection after 5 s
            limits=httpx.Limits(max_connections=200, keepalive_expiry=3),
        )
        self._healthy = False
        self._asked_at = -float("inf")

    async def send(
        self, path: str, *, headers: Mapping[str, str], body: AsyncIterator[bytes] | bytes
    ) -> httpx.Response:
        """Send a request, and return the response before its body is read.

        Raises:
            TransportError: SuperLink does not answer, or stops while it reads.
        """
        plain = {**headers, "accept-encoding": "identity"}
        request = self._client.build_request("POST", path, headers=plain, content=body)
        return await self._client.send(request, stream=True)

    async def is_healthy(self) -> bool:
        """Tell whether SuperLink answers."""
        if time.monotonic() - self._asked_at > _HEALTH_S:
            self._asked_at = time.monotonic()
            try:
                self._healthy = (await self._client.get("/health", timeout=5)).is_success
            except httpx.TransportError:
                self._healthy = False
        return self._healthy

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()


class Relay:
    """An ASGI app that passes an admitted site's call on to SuperLink and its answer back.

    Who is not admitted gets 401 before a byte of the body is read; Flower's SuperNode stops on
    it. While SuperLink is down the answer is 503, which SuperNode retries. Who asks for a message
    is answered when there is one, or in some seconds that there is none. A message that was given
    and never confirmed is given again, since SuperLink counts as delivered what it has sent once:
    the line may have been cut meanwhile, and the message lost.
    """

    def __init__(self, superlink: SuperLink, callers: Callers) -> None:
        self._superlink = superlink
        self._callers = callers
        self._given: dict[str, _Given] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        request = Request(scope, receive)
        refusal = self._refusal(request)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        try:
            async with asyncio.timeout(_LONGEST_EXCHANGE_S):
                await self._exchange(request, send)
        except (TimeoutError, ClientDisconnect):
            log.warn("exchange broken off", path=scope["path"], site=scope["state"]["site"])

    def _refusal(self, request: Request) -> Response | None:
        try:
            site = self._callers.site_of(request.headers)
        except EnrolmentError as error:
            log.warn("directory damaged", reason=str(error))
            return refuse(503, "not available")
        request.scope["state"]["site"] = site
        if site is None:
            return refuse(401, "no admitted site signed this")
        length = request.headers.get("content-length", "")
        if not length.isdecimal():
            return refuse(411, "content-length is missing")
        if int(length) > FLEET[request.url.path]:
            return refuse(413, f"at most {FLEET[request.url.path]} bytes")
        return None

    async def _exchange(self, request: Request, send: Send) -> None:
        kept = (*_REQUEST_HEADERS, "content-length")
        headers = {name: request.headers[name] for name in kept if name in request.headers}
        try:
            response = await self._answer(request, headers)
        except httpx.TransportError as error:
            log.warn("SuperLink does not answer", path=request.url.path, reason=repr(error))
            retry = {"retry-after": str(_RETRY_AFTER_S)}
            refusal = refuse(503, "SuperLink is restarting", headers=retry)
            await refusal(request.scope, request.receive, send)
            return
        try:
            async for message in _messages(response):
                await send(message)
        except httpx.TransportError as error:  # the connection is closed in mid-answer
            log.warn("SuperLink broke off", path=request.url.path, reason=repr(error))
        finally:
            await response.aclose()

    async def _answer(self, request: Request, headers: Mapping[str, str]) -> httpx.Response:
        """Return SuperLink's answer before its body is read.

        Raises:
            TransportError: SuperLink does not answer, or stops while it reads.
            ClientDisconnect: the site has gone while it waited: no message is taken for it.
        """
        path, key = request.url.path, headers[PUBLIC_KEY]
        if path == _PULL:
            given = self._given.pop(key, None) or _Given(await self._message(request, headers))
            if given.is_message and given.times < _MOST_GIVEN:
                self._given[key] = replace(given, times=given.times + 1)
            return given.again()
        response = await self._superlink.send(path, headers=headers, body=request.stream())
        if path == _CONFIRM and response.is_success:
            self._given.pop(key, None)
        return response

    async def _message(self, request: Request, headers: Mapping[str, str]) -> httpx.Response:
        """Return SuperLink's answer when it has a message for a site, or has none for some time."""
        body = await request.body()
        response = await self._superlink.send(_PULL, headers=headers, body=body)
        for pause in _PAUSES_S:
            if await response.aread() or not response.is_success:
                break
            await asyncio.sleep(pause)
            if await request.is_disconnected():
                raise ClientDisconnect
            response = await self._superlink.send(_PULL, headers=headers, body=body)
        await response.aread()
        return response


@dataclass(frozen=True)
class _Given:
    """A message that a site was given, or an answer without one."""

    response: httpx.Response
    times: int = 1

    @property
    def is_message(self) -> bool:
        """Whether there is a message in it: protobuf writes an answer without one as nothing."""
        return self.response.is_success and bool(self.response.content)

    def again(self) -> httpx.Response:
        """Return the answer as if it had just come."""
        answer, body = self.response, httpx.ByteStream(self.response.content)
        return httpx.Response(answer.status_code, headers=answer.headers, stream=body)


async def _messages(response: httpx.Response) -> AsyncIterator[Message]:
    """Yield SuperLink's answer as ASGI wants it."""
    kept = [
        (name.encode(), response.headers[name].encode("latin-1"))
        for name in _RESPONSE_HEADERS
        if name in response.headers
    ]
    yield {"type": "http.response.start", "status": response.status_code, "headers": kept}
    async for piece in response.aiter_raw():
        yield {"type": "http.response.body", "body": piece, "more_body": True}
    yield {"type": "http.response.body", "body": b"", "more_body": False}
