"""A pipe's answers are read by whoever asked, and by nobody else, whatever breaks."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest
import uvloop
from redis.exceptions import ResponseError

from gateway.store.pipe import Pipe
from tests.unit.fakes import clock

PATIENT_S = 10.0


class Server:
    """Answers ECHO with its word, TWICE twice, FAIL with an error, BABBLE with what is no answer.  WAIT is
    answered, and so what follows, once `go` is set; HANG UP never: it ends the connection."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.num_connections = 0
        self.heard: list[bytes] = []
        self.serving: set[asyncio.Task[Any] | None] = set()
        self.clients: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        self.serving.add(asyncio.current_task())
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while words := await _command(reader):
                self.heard.append(words[0])
                if words[0] == b"HANG UP":
                    break
                if words[0] == b"WAIT":
                    await self.go.wait()
                echo = b"$%d\r\n%b\r\n" % (len(words[-1]), words[-1])
                answers = {b"FAIL": b"-WRONGTYPE of this\r\n", b"BABBLE": b"?\r\n", b"TWICE": 2 * echo}
                writer.write(answers.get(words[0], echo))
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
        host, port = listening.sockets[0].getsockname()

        async def connect() -> asyncio.StreamWriter:
            server.clients.append((await asyncio.open_connection(host, port))[1])
            return server.clients[-1]

        pipe = Pipe(connect)
        yield pipe, server
        server.go.set()
        await pipe.aclose()
        await asyncio.gather(*filter(None, server.serving))


async def ask(pipe: Pipe, *words: str | int | float) -> Any:
    return await pipe.ask(words, PATIENT_S)


@pytest.mark.asyncio
async def test_many_ask_at_once_and_each_gets_its_own_answer() -> None:
    async with piped() as (pipe, server):
        answers = await asyncio.gather(*(ask(pipe, "ECHO", str(number)) for number in range(200)))
        assert answers == [b"%d" % number for number in range(200)]
        assert server.num_connections == 1


@pytest.mark.asyncio
async def test_an_error_is_its_askers_alone() -> None:
    async with piped() as (pipe, server):
        asked = [ask(pipe, "ECHO", 1), ask(pipe, "FAIL"), ask(pipe, "ECHO", 2.5)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert (answers[0], answers[2]) == (b"1", b"2.5")
        assert isinstance(answers[1], ResponseError)
        assert server.num_connections == 1


@pytest.mark.asyncio
async def test_a_lost_connection_fails_all_that_wait_and_is_replaced() -> None:
    async with piped() as (pipe, server):
        asked = (ask(pipe, "HANG UP"), ask(pipe, "ECHO", "behind"))
        assert all(isinstance(error, OSError) for error in await asyncio.gather(*asked, return_exceptions=True))
        assert await ask(pipe, "ECHO", "next") == b"next"
        assert server.num_connections == 2


@pytest.mark.asyncio
async def test_nonsense_ends_the_connection() -> None:
    async with piped() as (pipe, server):
        asked = (ask(pipe, "ECHO", "before"), ask(pipe, "BABBLE", "then"), ask(pipe, "WAIT", "behind"))
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert answers[0] == b"before"
        assert [type(error) for error in answers[1:]] == [ConnectionError, ConnectionError]
        server.go.set()
        assert await ask(pipe, "ECHO", "next") == b"next"
        assert server.num_connections == 2


@pytest.mark.asyncio
async def test_what_nobody_asked_for_ends_the_connection() -> None:
    async with piped() as (pipe, server):
        assert await ask(pipe, "TWICE", "once") == b"once"
        assert not pipe.is_open
        assert await ask(pipe, "ECHO", "next") == b"next"
        assert server.num_connections == 2


@pytest.mark.asyncio
async def test_a_pipe_is_open_from_its_first_question_until_its_connection_ends() -> None:
    async with piped() as (pipe, _):
        assert not pipe.is_open
        await ask(pipe, "ECHO", 1)
        assert pipe.is_open
        with pytest.raises(ConnectionError):
            await ask(pipe, "HANG UP")
        assert not pipe.is_open


@pytest.mark.asyncio
@pytest.mark.parametrize("moment", range(3))
async def test_a_cancelled_question_is_over_when_the_cancellation_arrives(moment: int) -> None:
    async with piped() as (pipe, server):
        await ask(pipe, "ECHO", "an open pipe")
        asking = asyncio.create_task(ask(pipe, "WAIT", "late"))
        await turns(moment)
        asking.cancel()
        behind = asyncio.create_task(ask(pipe, "ECHO", "behind"))
        await turns()
        assert asking.done() == (moment == 0), "nothing was asked yet"
        server.go.set()
        assert await behind == b"behind"
        await asyncio.wait([asking])
        assert asking.cancelled()
        assert (b"WAIT" in server.heard) == (moment > 0)


@pytest.mark.asyncio
async def test_whoever_is_cancelled_twice_goes_and_the_question_goes_on() -> None:
    async with piped() as (pipe, server):
        await ask(pipe, "ECHO", "an open pipe")
        asking = asyncio.create_task(ask(pipe, "WAIT", "late"))
        for _ in range(2):
            await turns()
            assert not asking.done()
            asking.cancel()
        await asyncio.wait([asking])
        behind = asyncio.create_task(ask(pipe, "ECHO", "behind"))
        closing = asyncio.create_task(pipe.aclose())
        await turns()
        assert not closing.done()
        server.go.set()
        assert await behind == b"behind"
        await closing
        assert server.num_connections == 1


@pytest.mark.asyncio
async def test_whoever_is_cancelled_and_then_gets_no_answer_is_cancelled() -> None:
    async with piped() as (pipe, _):
        await ask(pipe, "ECHO", "an open pipe")
        asking = asyncio.create_task(ask(pipe, "HANG UP"))
        await turns(1)
        asking.cancel()
        await asyncio.wait([asking])
        assert asking.cancelled()


@pytest.mark.asyncio
async def test_whoever_is_cancelled_while_a_pipe_opens_has_asked_nothing() -> None:
    async with piped() as (pipe, server):
        asking = asyncio.create_task(ask(pipe, "WAIT", "never"))
        await turns(1)
        asking.cancel()
        await asyncio.wait([asking])
        assert asking.cancelled()
        assert await ask(pipe, "ECHO", "next") == b"next"
        assert server.heard == [b"ECHO"]


async def turns(count: int = 15) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


class Silent:
    """A connection to a server that answers when the test says so."""

    def __init__(self) -> None:
        self.is_lost = False
        self.protocol: Any = None

    async def connect(self) -> Any:
        return SimpleNamespace(transport=self)

    def set_protocol(self, protocol: asyncio.Protocol) -> None:
        self.protocol = protocol

    def is_closing(self) -> bool:
        return self.is_lost

    def write(self, data: bytes) -> None:
        pass

    def answer(self) -> None:
        self.protocol.data_received(b"+OK\r\n")

    def abort(self) -> None:
        assert not self.is_lost
        self.is_lost = True
        asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)


def on_virtual_time(test: Callable[[Silent], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        clock.run(test(Silent()))

    run.__name__ = test.__name__
    return run


@on_virtual_time
async def test_a_late_answer_fails_its_asker_and_all_behind(server: Silent) -> None:
    pipe, loop = Pipe(server.connect), asyncio.get_running_loop()
    late = asyncio.create_task(pipe.ask(("LATE",), 4.0))
    await asyncio.sleep(1.0)
    behind = asyncio.create_task(pipe.ask(("BEHIND",), 4.0))
    await asyncio.wait([late, behind])
    assert loop.time() == 4.0
    assert [type(task.exception()) for task in (late, behind)] == [TimeoutError, TimeoutError]
    assert not pipe.is_open


@on_virtual_time
async def test_each_question_has_its_own_time_but_for_a_quarter(server: Silent) -> None:
    pipe, loop = Pipe(server.connect), asyncio.get_running_loop()
    asked = []
    for _ in range(9):
        asked.append(asyncio.create_task(pipe.ask(("GET",), 4.0)))
        await asyncio.sleep(0.4)
    for task in asked[:-1]:
        # None is late, though something has been waiting for longer than that.
        server.answer()
        assert await task == b"OK"
        await asyncio.sleep(0.4)
    with pytest.raises(TimeoutError):
        await asked[-1]
    assert 3.2 + 4.0 <= loop.time() <= 3.2 + 5.0


@on_virtual_time
async def test_answers_in_time_end_the_watch(server: Silent) -> None:
    pipe = Pipe(server.connect)
    for _ in range(3):
        asking = asyncio.create_task(pipe.ask(("GET",), 4.0))
        await asyncio.sleep(3.9)
        server.answer()
        assert await asking == b"OK"
        await asyncio.sleep(60.0)
    assert pipe.is_open


@pytest.mark.asyncio
async def test_what_came_while_this_process_stood_still_is_read_before_it_is_late() -> None:
    server = Silent()
    pipe = Pipe(server.connect)
    asking = asyncio.create_task(pipe.ask(("GET",), 0.4))
    await turns()
    time.sleep(0.5)  # noqa: ASYNC251
    # A long answer takes several turns of the loop to read.
    await turns()
    server.answer()
    assert await asking == b"OK"


def test_what_uvloop_has_just_closed_is_not_written_to() -> None:
    async def close() -> None:
        async with piped() as (pipe, server):
            await ask(pipe, "ECHO", "an open pipe")
            server.clients[-1].transport.abort()
            assert await ask(pipe, "ECHO", "next") == b"next"
            assert server.num_connections == 2

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(close())
