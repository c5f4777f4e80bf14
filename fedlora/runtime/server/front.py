"""The front: the only process that faces the sites. ``python -m fedlora.runtime.server.front DIR``.

It answers a SuperNode's calls by passing them on to SuperLink, takes enrolment requests, says
whether it is healthy, and answers 404 to everything else. A second listener, on loopback, tells
health in detail and metrics.
"""

import asyncio
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedlora.errors import EnrolmentError, FedloraError, RunError
from fedlora.runtime.enrolment import ENROL_PATH, MAX_REQUEST_BYTES, Answer, EnrolmentRequest, State
from fedlora.runtime.processes import log
from fedlora.runtime.server.authority import days_left
from fedlora.runtime.server.caller import Callers
from fedlora.runtime.server.configuration import Configuration
from fedlora.runtime.server.control import Control
from fedlora.runtime.server.directory import Directory
from fedlora.runtime.server.folder import ServerFolder
from fedlora.runtime.server.listener import listener, serve
from fedlora.runtime.server.metrics import Traffic, exposition, online
from fedlora.runtime.server.relay import FLEET, Relay, SuperLink, refuse

_HEALTH = "/healthz"
_PATHS = frozenset((*FLEET, ENROL_PATH, _HEALTH))
_ENROL_S = 10
_LOOPBACK = "127.0.0.1"


class Front:
    """What the sites may ask, as an ASGI app; it counts what passes."""

    def __init__(self, folder: ServerFolder, *, superlink: SuperLink, traffic: Traffic) -> None:
        self._directory = Directory(folder)
        self._superlink = superlink
        self._traffic = traffic
        self._refusals = _Refusals()
        relay = Relay(superlink, Callers(self._directory))
        routes = [Route(path, relay, methods=["POST"]) for path in FLEET]
        routes.append(Route(ENROL_PATH, self._enrol, methods=["POST"]))
        routes.append(Route(_HEALTH, self._health, methods=["GET"]))
        self._app: ASGIApp = Starlette(routes=routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request whose path is exactly one of the known."""
        path = scope["path"]
        known = path in _PATHS and scope["raw_path"] == path.encode() and not scope["query_string"]
        counted = path if known else "other"
        app = self._app if known else refuse(404, "not found")
        if any(name == b"transfer-encoding" for name, _ in scope["headers"]):
            app = refuse(411, "content-length is missing")

        async def counting_receive() -> Message:
            message = await receive()
            self._traffic.received[counted] += len(message.get("body", b""))
            return message

        async def counting_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._traffic.requests[counted, message["status"]] += 1
                if message["status"] >= 400:
                    self._refusals.tell(scope, status=message["status"])
            self._traffic.sent[counted] += len(message.get("body", b""))
            await send(message)

        await app(scope, counting_receive, counting_send)

    async def _health(self, _: Request) -> Response:
        healthy = await self._superlink.is_healthy()
        return JSONResponse({"healthy": healthy}, status_code=200 if healthy else 503)

    async def _enrol(self, request: Request) -> Response:
        try:
            async with asyncio.timeout(_ENROL_S):
                asked = EnrolmentRequest.from_json(await _body(request))
        except (TimeoutError, ClientDisconnect):
            return refuse(408, "the request took too long")
        except EnrolmentError as error:
            return refuse(400, str(error))
        try:
            state: State = await run_in_threadpool(self._directory.enrol, asked)
        except EnrolmentError as error:
            return refuse(403, str(error))
        log.say("enrolment", site=asked.site, state=state, fingerprint=asked.fingerprint)
        return JSONResponse(Answer(state=state).model_dump(exclude_none=True))


class _Refusals:
    """Tells of refused requests, at most once a second: who knocks must not fill the disk."""

    def __init__(self) -> None:
        self._told_at = -float("inf")
        self._untold = 0

    def tell(self, scope: Scope, *, status: int) -> None:
        if time.monotonic() - self._told_at < 1:
            self._untold += 1
            return
        peer = (scope.get("client") or ("unknown",))[0]
        path = scope["path"][:100]
        log.warn("refused", status=status, path=path, peer=peer, untold=self._untold)
        self._told_at, self._untold = time.monotonic(), 0


class Inside:
    """What this host's own monitoring may ask, on loopback."""

    def __init__(self, folder: ServerFolder, *, traffic: Traffic) -> None:
        self._folder = folder
        self._traffic = traffic
        self.app: ASGIApp = Starlette(
            routes=[Route(_HEALTH, self._health), Route("/metrics", self._metrics)]
        )

    def _health(self, _: Request) -> Response:
        nodes = self._nodes()
        facts = {
            "superlink": "down" if nodes is None else "up",
            "sites_online": online(self._folder, nodes or {}),
            "certificate_days_left": days_left(self._folder.front_certificate),
        }
        return JSONResponse(facts, status_code=503 if nodes is None else 200)

    def _metrics(self, _: Request) -> Response:
        text = exposition(self._folder, self._traffic, nodes=self._nodes())
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    def _nodes(self) -> Mapping[int, str] | None:
        try:
            with Control(self._folder) as control:
                return control.nodes()
        except RunError:
            return None


async def run(folder: ServerFolder) -> None:
    """Serve until the process is told to stop.

    Raises:
        FedloraError: the configuration or a certificate is missing or wrong.
    """
    configuration = Configuration.read(folder.configuration)
    traffic, superlink = Traffic(), SuperLink(folder)
    front = listener(
        Front(folder, superlink=superlink, traffic=traffic),
        host=configuration.listen,
        port=configuration.port,
        certificate=folder.front_certificate,
    )
    inside = Inside(folder, traffic=traffic).app
    log.say("front starts", address=configuration.address, port=configuration.port)
    await serve([front, listener(inside, host=_LOOPBACK, port=configuration.metrics_port)])
    await superlink.close()


async def _body(request: Request) -> bytes:
    """Read a request's body as far as one may be long."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_REQUEST_BYTES:
            break
    return body


def main(folder: Path) -> None:
    """Be the front's process."""
    log.start("front")
    try:
        asyncio.run(run(ServerFolder(folder)))
    except FedloraError as error:
        log.warn("front cannot start", reason=str(error))
        sys.exit(2)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
