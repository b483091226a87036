"""A pipe's answers are read by whoever asked, and by nobody else, whatever breaks."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio.connection import Connection
from redis.exceptions import ResponseError

from gateway.store.pipe import Pipe

pytestmark = pytest.mark.asyncio


class Server:
    """Answers ECHO with its word and FAIL with an error.  WAIT is answered, and so what follows, once `go` is set;
    HANG UP never: it ends the connection."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.num_connections = 0
        self.serving: set[asyncio.Task[Any] | None] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        self.serving.add(asyncio.current_task())
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while words := await _command(reader):
                if words[0] == b"HANG UP":
                    break
                if words[0] == b"WAIT":
                    await self.go.wait()
                fails = words[0] == b"FAIL"
                writer.write(
                    b"-WRONGTYPE of this\r\n" if fails else b"$%d\r\n%b\r\n" % (len(words[-1]), words[-1])
                )
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def _command(reader: asyncio.StreamReader) -> list[bytes]:
    words = []
    for _ in range(int((await reader.readuntil(b"\r\n"))[1:])):
        size = int((await reader.readuntil(b"\r\n"))[1:])
        words.append((await reader.readexactly(size + 2))[:-2])
    return words


@contextlib.asynccontextmanager
async def piped() -> AsyncIterator[tuple[Pipe, Server]]:
    server = Server()
    async with await asyncio.start_server(server.serve, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        options: dict[str, Any] = {"driver_info": None, "protocol": 2, "socket_timeout": None}
        pipe = Pipe(lambda: Connection(host="127.0.0.1", port=port, **options))
        yield pipe, server
        await pipe.aclose()
        server.go.set()
        await asyncio.gather(*filter(None, server.serving))


async def test_many_ask_at_once_and_each_gets_its_own_answer() -> None:
    async with piped() as (pipe, server):
        answers = await asyncio.gather(*(pipe.ask("ECHO", str(number)) for number in range(200)))
        assert answers == [b"%d" % number for number in range(200)]
        assert server.num_connections == 1


async def test_an_error_is_its_askers_alone() -> None:
    async with piped() as (pipe, server):
        asked = [pipe.ask("ECHO", 1), pipe.ask("FAIL"), pipe.ask("ECHO", 2.5)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert (answers[0], answers[2]) == (b"1", b"2.5")
        assert isinstance(answers[1], ResponseError)
        assert server.num_connections == 1


async def test_who_stops_waiting_breaks_the_line_for_those_behind_and_nobody_reads_the_late_answer() -> None:
    async with piped() as (pipe, server):
        waits = asyncio.create_task(pipe.ask("WAIT", "late"))
        behind = asyncio.create_task(pipe.ask("ECHO", "behind"))
        while not server.num_connections:
            await asyncio.sleep(0)
        waits.cancel()
        with pytest.raises(ConnectionError):
            await behind
        assert waits.cancelled()
        server.go.set()
        assert await pipe.ask("ECHO", "next") == b"next"
        assert server.num_connections == 2


async def test_a_lost_connection_fails_all_that_wait_and_is_replaced() -> None:
    async with piped() as (pipe, server):
        asked = (pipe.ask("HANG UP"), pipe.ask("ECHO", "behind"))
        assert all(isinstance(error, Exception) for error in await asyncio.gather(*asked, return_exceptions=True))
        assert await pipe.ask("ECHO", "next") == b"next"
        assert server.num_connections == 2
