"""One connection on which questions follow each other without waiting, and each is answered in its turn.

redis-py makes the connection and reads the answers; what is left out is its pool, which costs more than a
question does.  Nothing is sent twice.  Behind an answer that does not come nothing comes: whoever stops waiting
for one breaks the connection for all that wait, and the next question opens another.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

import hiredis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError, ResponseError

Word = str | bytes | int | float


class Pipe:
    def __init__(self, make: Callable[[], AbstractConnection]) -> None:
        """`make` gives a connection that is not open yet."""
        self._make = make
        self._line: _Line | None = None
        self._opening = asyncio.Lock()

    async def ask(self, *command: Word) -> Any:
        """The answer.  Raises RedisError and OSError, and TypeError for words of a subclass."""
        line = self._line or await self._open()
        try:
            return await line.ask(command)
        except ResponseError:
            raise
        except BaseException:
            await line.close()
            raise

    async def aclose(self) -> None:
        if (line := self._line) is not None:
            await line.close()
            await asyncio.wait({line.reading})

    async def _open(self) -> "_Line":
        async with self._opening:
            if self._line is None:
                connection = self._make()
                await connection.connect()  # type: ignore[no-untyped-call]
                self._line = _Line(connection, self._lost)
            return self._line

    def _lost(self, line: "_Line") -> None:
        if self._line is line:
            self._line = None


class _Line:
    """From a connection's opening to its end."""

    def __init__(self, connection: AbstractConnection, on_end: Callable[["_Line"], None]) -> None:
        self._connection = connection
        self._on_end = on_end
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self.reading = asyncio.create_task(self._read())

    async def ask(self, command: tuple[Word, ...]) -> Any:
        packed = hiredis.pack_command(command)  # type: ignore[arg-type]  # its stub wants one word
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append(answer)
        try:
            await self._connection.send_packed_command(packed, check_health=False)
        except BaseException:
            answer.cancel()
            raise
        return await answer

    async def close(self) -> None:
        # The task may not have begun to run: it cannot be left to it to end all this.
        self.reading.cancel()
        await self._end(ConnectionError("the connection was given up"))

    async def _end(self, failure: Exception) -> None:
        self._on_end(self)
        for answer in self._waiting:
            if not answer.done():
                answer.set_exception(failure)
        await self._connection.disconnect(nowait=True)

    async def _read(self) -> None:
        try:
            while True:
                await self._read_one()
        except (RedisError, OSError, IndexError) as error:
            await self._end(error)

    async def _read_one(self) -> None:
        """Raises RedisError and OSError if the connection is lost, IndexError for what nobody asked."""
        try:
            reply = await self._connection.read_response()
        except ResponseError as error:
            answer = self._waiting.popleft()
            if not answer.done():
                answer.set_exception(error)
        else:
            answer = self._waiting.popleft()
            if not answer.done():
                answer.set_result(reply)
