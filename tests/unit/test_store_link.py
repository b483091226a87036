"""The link's rules before its pipe is open, with a question that ends when the test says so."""

import asyncio
import socket
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from gateway.errors import StoreLost
from gateway.store import breaker
from gateway.store.breaker import MAX_FAILURES
from gateway.store.home import connect
from gateway.store.link import Link
from tests.unit.fakes import clock


class Question:
    def __init__(self) -> None:
        self.answer = asyncio.Event()
        self.state = "unasked"

    async def __call__(self, client: Redis) -> str:
        self.state = "asked"
        try:
            await self.answer.wait()
        except asyncio.CancelledError:
            self.state = "stopped"
            raise
        self.state = "answered"
        return "answer"


def link(timeout_s: float) -> Link:
    """To a server that no question here turns to."""
    return Link(connect("redis://nowhere"), timeout_s, Question())


async def turns(count: int = 15) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.asyncio
async def test_a_question_has_a_deadline() -> None:
    question = Question()
    with pytest.raises(StoreLost):
        await link(0.0).ask(question)
    assert question.state in ("stopped", "unasked")


@pytest.mark.asyncio
async def test_an_answer_that_came_while_this_process_stood_still_counts() -> None:
    here, there = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=here)

    async def question(client: Redis) -> bytes:
        return await reader.readexactly(1)

    store = link(0.1)
    asking = asyncio.create_task(store.ask(question))
    await turns()
    there.send(b"!")
    time.sleep(0.2)  # noqa: ASYNC251
    assert await asking == b"!"
    await store.aclose()
    writer.close()
    await writer.wait_closed()
    there.close()


def test_a_connection_that_uvloop_has_just_closed_is_a_failure_like_others() -> None:
    async def ask() -> None:
        here, there = socket.socketpair()
        _, writer = await asyncio.open_connection(sock=here)

        async def question(client: Redis) -> None:
            # As when the other side goes, and whoever reads has not had its turn yet.
            writer.transport.abort()
            await writer.wait_closed()
            writer.writelines([b"?"])

        store = link(5.0)
        with pytest.raises(StoreLost, match="RuntimeError"):
            await store.ask(question)
        await store.aclose()
        here.close()
        there.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(ask())


def test_the_time_that_the_store_may_take_is_added() -> None:
    async def wait() -> float:
        with pytest.raises(StoreLost):
            await link(1.0).wait(Question(), wait_s=6.0)
        return asyncio.get_running_loop().time()

    assert clock.run(wait()) == 7.0


@pytest.mark.asyncio
@pytest.mark.parametrize("error", [ResponseError("WRONGTYPE"), ConnectionResetError(), TimeoutError()])
async def test_a_foreign_error_stops_here(error: Exception) -> None:
    with pytest.raises(StoreLost) as lost:
        await link(5.0).ask(raising(error))
    assert lost.value.__cause__ is error


def raising(error: Exception) -> Callable[[Redis], Coroutine[Any, Any, None]]:
    async def question(client: Redis) -> None:
        raise error

    return question


class Server:
    """Answers from `thaws_s` on; the moments at which it was probed, and what was heard of it."""

    def __init__(self, thaws_s: float, timeout_s: float = 1.0) -> None:
        self.thaws_s = thaws_s
        self.probed_s: list[float] = []
        self.heard: list[tuple[float, bool]] = []
        self.link = Link(connect("redis://nowhere"), timeout_s, self.probe, self.hear)

    @property
    def now_s(self) -> float:
        return asyncio.get_running_loop().time()

    async def probe(self, client: Redis) -> None:
        self.probed_s.append(self.now_s)
        await self.answer(client)

    async def answer(self, client: Redis) -> None:
        await asyncio.sleep(max(0.0, self.thaws_s - self.now_s))

    def hear(self, is_lost: bool) -> None:
        self.heard.append((self.now_s, is_lost))

    async def fail(self, count: int, error: Exception | None = None) -> None:
        for _ in range(count):
            with pytest.raises(StoreLost):
                await self.link.ask(raising(error or RedisConnectionError()))


def test_after_so_many_failures_in_a_row_nothing_is_asked() -> None:
    async def fail() -> None:
        server, question = Server(thaws_s=99.0), Question()
        await server.fail(MAX_FAILURES - 1)
        await server.link.ask(raising_nothing)
        await server.fail(MAX_FAILURES - 1)
        await server.fail(1, ResponseError("an answer, if a bad one"))
        await server.fail(MAX_FAILURES - 1)
        assert server.heard == []
        await server.fail(1)
        assert server.heard == [(0.0, True)]
        with pytest.raises(StoreLost, match="does not answer"):
            await server.link.ask(question)
        assert (question.state, server.now_s) == ("unasked", 0.0)
        await server.link.aclose()

    clock.run(fail())


async def raising_nothing(client: Redis) -> None:
    pass


def test_it_is_probed_one_at_a_time_after_growing_pauses_until_it_answers() -> None:
    async def freeze() -> None:
        server = Server(thaws_s=10.0)
        await server.fail(MAX_FAILURES)
        await asyncio.sleep(20.0)
        pauses_s = [0.05, 0.1, 0.2, 0.4, 0.5, 0.5, 0.5, 0.5]
        due_s = [sum(pauses_s[: count + 1]) + count * 1.0 for count in range(len(pauses_s))]
        assert server.probed_s == pytest.approx(due_s)
        assert server.heard == [(0.0, True), (pytest.approx(due_s[-1] + max(0.0, 10.0 - due_s[-1])), False)]
        await server.link.ask(raising_nothing)
        await server.link.aclose()

    clock.run(freeze())


@pytest.mark.parametrize("thaws_s", [3.0, 3.3, 3.6, 3.9, 4.2])
def test_a_thaw_is_noticed_soon(thaws_s: float) -> None:
    async def thaw() -> None:
        server = Server(thaws_s)
        await server.fail(MAX_FAILURES)
        await asyncio.sleep(20.0)
        assert thaws_s <= server.heard[-1][0] <= thaws_s + breaker.MAX_PAUSE_S
        await server.link.aclose()

    clock.run(thaw())


def test_any_answer_ends_it_and_it_may_begin_again() -> None:
    async def answer_late() -> None:
        server, question = Server(thaws_s=99.0), Question()
        task = asyncio.create_task(server.link.ask(question))
        await turns()
        await server.fail(MAX_FAILURES)
        question.answer.set()
        assert await task == "answer"
        assert [is_lost for _, is_lost in server.heard] == [True, False]
        await server.fail(MAX_FAILURES)
        assert [is_lost for _, is_lost in server.heard] == [True, False, True]
        await asyncio.sleep(0.06)
        assert len(server.probed_s) == 1
        await server.link.aclose()

    clock.run(answer_late())


def test_a_closed_link_probes_no_more() -> None:
    async def close() -> None:
        server = Server(thaws_s=99.0)
        await server.fail(MAX_FAILURES)
        await server.link.aclose()
        await asyncio.sleep(5.0)
        assert server.probed_s == []

    clock.run(close())
