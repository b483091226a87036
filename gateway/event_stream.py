"""A response, of server-sent events or whole, to a client that may be slow or gone."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any

from aiohttp import web

from gateway.ports import Later

HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    # nginx would hold events back.
    "X-Accel-Buffering": "no",
}

_LOW_WATER_BYTES = 2**14
"""With no more than this unsent, transports let writers go on (asyncio's and uvloop's default)."""
_PIECE_BYTES = 2**16


class ClientGone(Exception):
    """The client closed the connection, or stopped reading."""


class Reply:
    """Its headers leave with the first bytes, so that an error before them can still be a status."""

    def __init__(self, request: web.Request, headers: Mapping[str, str], slow_client_s: float) -> None:
        self.response = web.StreamResponse(headers=headers)
        self._request = request
        self._transport = request.transport
        """The request's own forgets it when the connection is lost; this one then says that it is closing."""
        self._slow_client_s = slow_client_s

    @property
    def begun(self) -> bool:
        return self.response.prepared

    async def write(self, data: bytes) -> None:
        """Waits while the client has too much unread.  Raises ClientGone."""
        try:
            if not self.begun:
                await self.response.prepare(self._request)
            async with asyncio.timeout(None if self._has_room(data) else self._slow_client_s):
                await self.response.write(data)
        except TimeoutError:
            if self._transport is not None:
                self._transport.abort()
            raise ClientGone from None
        except ConnectionError:
            raise ClientGone from None

    def _has_room(self, data: bytes) -> bool:
        transport = self._transport
        if transport is None or transport.is_closing():
            return False
        return transport.get_write_buffer_size() + len(data) < _LOW_WATER_BYTES

    async def write_all(self, data: bytes) -> None:
        """As `write`, a piece at a time: whoever reads at all gets all of it."""
        for start in range(0, len(data), _PIECE_BYTES):
            await self.write(data[start : start + _PIECE_BYTES])


class EventStream(Reply):
    def __init__(self, request: web.Request, slow_client_s: float) -> None:
        super().__init__(request, HEADERS, slow_client_s)

    def send(self, data: bytes) -> Later | None:
        """Write it now, if that need not wait: the common case, which costs no turn of the event loop.  Otherwise
        it is left for later, which raises ClientGone."""
        if not data:
            return None
        if not self._has_room(data):
            return partial(self.write, data)
        if not self.begun:
            _at_once(self.response.prepare(self._request))
        _at_once(self.response.write(data))
        return None

    def cut(self) -> web.StreamResponse:
        """End it as a broken connection would, so that nobody takes what was sent for everything."""
        if self._transport is not None:
            self._transport.close()
        return self.response

    async def fail(self, event: bytes) -> web.StreamResponse:
        """End with an error, if anyone still reads."""
        with contextlib.suppress(ClientGone):
            await self.write(event)
        return self.response


def _at_once(work: Coroutine[Any, Any, object]) -> None:
    """Run to its end what does not wait."""
    try:
        work.send(None)
    except StopIteration:
        return
    raise AssertionError("aiohttp waits, though there is room")


class Silence:
    """Calls `tell` whenever nothing has been heard for so long.  Its timer is moved when it is due and not with
    each token, of which there are many more."""

    def __init__(self, after_s: float, tell: Callable[[], None]) -> None:
        self._after_s = after_s
        self._tell = tell
        self._loop = asyncio.get_running_loop()
        self.broken()
        self._wait()

    def broken(self) -> None:
        """Something was heard."""
        self._since_s = self._loop.time()

    def end(self) -> None:
        self._timer.cancel()

    def _wait(self) -> None:
        self._timer = self._loop.call_at(self._since_s + self._after_s, self._look)

    def _look(self) -> None:
        if self._loop.time() - self._since_s >= self._after_s:
            self._tell()
            self.broken()
        self._wait()
