"""The line between a site and its aggregator: a TCP proxy to be cut, slowed or kept silent."""

import asyncio
import threading
from typing import Literal, Self

Mode = Literal["whole", "cut", "silent", "slow", "half"]
"""``cut`` resets what is open and takes nothing new, ``silent`` takes all and passes nothing on,
``half`` ends what comes down and goes on taking what goes up."""

_PIECE = 4096
_SLOW_S = 0.2
"""For each piece and direction: some 20 kB/s, and a fifth of a second of delay."""
_LOOK_S = 0.05


class Line:
    """Passes bytes on to ``target`` (``host:port``) for as long as the block runs."""

    def __init__(self, target: str) -> None:
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self._open: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.mode: Mode = "whole"
        self.address = ""

    def __enter__(self) -> Self:
        self._thread.start()
        start = asyncio.start_server(self._connected, "127.0.0.1", 0)
        self._server = asyncio.run_coroutine_threadsafe(start, self._loop).result()
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def become(self, mode: Mode) -> None:
        """Change how the line is, for what is open too."""
        self.mode = mode
        if mode == "cut":
            self._loop.call_soon_threadsafe(self._reset)

    async def _close(self) -> None:
        self._server.close()
        passing = asyncio.all_tasks() - {asyncio.current_task()}
        for task in passing:
            task.cancel()
        await asyncio.gather(*passing, return_exceptions=True)

    def _reset(self) -> None:
        for writer in self._open:
            writer.transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.mode == "cut":
            writer.transport.abort()
            return
        try:
            upper, up = await asyncio.open_connection(self._host, self._port)
        except OSError:
            writer.transport.abort()
            return
        self._open |= {writer, up}
        try:
            ways = self._pass(reader, up), self._pass(upper, writer, down=True)
            await asyncio.gather(*ways, return_exceptions=True)
        finally:
            for end in (writer, up):
                self._open.discard(end)
                end.transport.abort()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, down: bool = False
    ) -> None:
        while data := await reader.read(_PIECE):
            while self.mode == "silent":  # noqa: ASYNC110 - another thread changes it
                await asyncio.sleep(_LOOK_S)
            if self.mode == "half" and down:
                break
            if self.mode == "slow":
                await asyncio.sleep(_SLOW_S)
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
