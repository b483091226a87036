"""One connection on which questions follow each other without waiting, and each is answered in its turn.

redis-py opens the connection and gives errors their types; its pool, its streams and its timeouts, which cost more
than a question does, are left out.  Nothing is sent twice.  What was asked cannot be taken back, and behind an
answer that does not come nothing comes: when one is late, the connection is given up for all that wait, and the
next question opens another.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import hiredis
from redis._parsers import BaseParser
from redis.exceptions import InvalidResponse

Word = str | bytes | int | float

_NOT_YET = object()


class Pipe:
    def __init__(self, connect: Callable[[], Awaitable[asyncio.StreamWriter]]) -> None:
        """`connect` gives a connection on which nothing is to be read."""
        self._connect = connect
        self._line: _Line | None = None
        self._opening = asyncio.Lock()

    @property
    def is_open(self) -> bool:
        return self._open_line is not None

    async def ask(self, command: tuple[Word, ...], timeout_s: float) -> Any:
        """The answer; `timeout_s` begins when there is a connection.  Whoever is cancelled while waiting for it
        hears of that when it is there, or at once if cancelled again.

        Raises RedisError and OSError, TimeoutError among them, and TypeError for words of a subclass."""
        line = self._open_line or await self._open()
        return await line.ask(command, timeout_s)

    async def aclose(self) -> None:
        """Returns when nothing waits for an answer."""
        if self._line is not None:
            await self._line.aclose()

    @property
    def _open_line(self) -> "_Line | None":
        return self._line if self._line is not None and self._line.is_open else None

    async def _open(self) -> "_Line":
        async with self._opening:
            if (line := self._open_line) is None:
                line = self._line = _Line(await self._connect())
            return line


class _Answer(asyncio.Future[Any]):
    """What was asked happens, whoever stops waiting for it.  So a first cancellation is put off until the answer
    is there: asyncio cancels what a task waits for, and if that declines, the task when it next runs."""

    def __init__(self, loop: asyncio.AbstractEventLoop, timeout_s: float) -> None:
        super().__init__(loop=loop)
        self.timeout_s = timeout_s
        self.due_s = loop.time() + timeout_s
        self._has_declined = False

    def cancel(self, msg: Any = None) -> bool:
        if self._has_declined:
            return super().cancel(msg)
        self._has_declined = True
        return False


class _Line(asyncio.Protocol):
    """From a connection's opening to its end."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        """Kept, as it closes the transport when it is let go."""
        self._replies = hiredis.Reader(InvalidResponse, BaseParser.parse_error, notEnoughData=_NOT_YET)
        self._waiting: deque[_Answer] = deque()
        self._looking: asyncio.TimerHandle | None = None
        self._suspect: _Answer | None = None
        self._loop = asyncio.get_running_loop()
        self._ended = self._loop.create_future()
        self._transport = writer.transport
        self._transport.set_protocol(self)

    @property
    def is_open(self) -> bool:
        return not self._transport.is_closing()

    def ask(self, command: tuple[Word, ...], timeout_s: float) -> _Answer:
        packed = hiredis.pack_command(command)  # type: ignore[arg-type]  # its stub wants one word
        answer = _Answer(self._loop, timeout_s)
        self._transport.write(packed)
        self._waiting.append(answer)
        if self._looking is None:
            self._look()
        return answer

    async def aclose(self) -> None:
        if self._waiting:
            await asyncio.wait([self._waiting[-1]])
        # All is said.  TLS would wait for the other side's goodbye.
        self._transport.abort()
        await self._ended

    def _look(self) -> None:
        """Is the oldest question's time over?  It is looked at once before: this process may have been kept from
        running, and then what came meanwhile is still to be read."""
        self._looking = None
        if not self._waiting:
            return
        oldest = self._waiting[0]
        if oldest is self._suspect:
            self._give_up(TimeoutError(f"no answer for {oldest.timeout_s:g} s"))
            return
        left_s = oldest.due_s - self._loop.time()
        quarter_s = oldest.timeout_s / 4
        if left_s <= quarter_s:
            self._suspect = oldest
            pause_s = max(left_s, quarter_s)
        else:
            pause_s = left_s - quarter_s
        self._looking = self._loop.call_later(pause_s, self._look)

    def data_received(self, data: bytes) -> None:
        try:
            self._replies.feed(data)
            while (reply := self._replies.gets()) is not _NOT_YET:
                answer = self._waiting.popleft()
                if answer.done():
                    continue
                if isinstance(reply, Exception):
                    answer.set_exception(reply)
                else:
                    answer.set_result(reply)
        except (InvalidResponse, IndexError) as error:
            self._give_up(ConnectionError(f"nothing that was asked for: {error!r}"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(exc or ConnectionError("the server closed the connection"))
        if self._looking is not None:
            self._looking.cancel()
        self._ended.set_result(None)

    def _give_up(self, failure: Exception) -> None:
        self._fail(failure)
        self._transport.abort()

    def _fail(self, failure: Exception) -> None:
        while self._waiting:
            answer = self._waiting.popleft()
            if not answer.done():
                answer.set_exception(failure)
