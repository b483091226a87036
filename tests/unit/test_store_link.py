"""The link's three rules, with a question that ends when the test says so."""

import asyncio

import pytest
from redis.exceptions import ResponseError

from gateway.errors import StoreLost
from gateway.store.link import Link


class Question:
    def __init__(self) -> None:
        self.answer = asyncio.Event()
        self.state = "unasked"

    async def __call__(self) -> str:
        self.state = "asked"
        try:
            await self.answer.wait()
        except asyncio.CancelledError:
            self.state = "stopped"
            raise
        self.state = "answered"
        return "answer"


async def turns(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.asyncio
@pytest.mark.parametrize("moment", range(4))
async def test_a_cancelled_question_is_over_when_the_cancellation_arrives(moment: int) -> None:
    link, question = Link(5.0), Question()
    task = asyncio.create_task(link.ask(question))
    await turns(moment)
    task.cancel()
    await turns()
    assert task.done() == (moment == 0), "nothing was asked yet"
    question.answer.set()
    await asyncio.wait([task])
    assert task.cancelled()
    assert question.state == ("unasked" if moment == 0 else "answered")


@pytest.mark.asyncio
async def test_whoever_is_cancelled_twice_goes_and_the_question_goes_on() -> None:
    link, question = Link(5.0), Question()
    task = asyncio.create_task(link.ask(question))
    for _ in range(2):
        await turns()
        task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert question.state == "asked"
    question.answer.set()
    await link.settle()
    assert question.state == "answered"


@pytest.mark.asyncio
async def test_a_question_has_a_deadline() -> None:
    question = Question()
    with pytest.raises(StoreLost):
        await Link(0.0).ask(question)
    assert question.state in ("stopped", "unasked")


@pytest.mark.asyncio
@pytest.mark.parametrize("error", [ResponseError("WRONGTYPE"), ConnectionResetError(), TimeoutError()])
async def test_a_foreign_error_stops_here(error: Exception) -> None:
    async def question() -> None:
        raise error

    with pytest.raises(StoreLost) as lost:
        await Link(5.0).ask(question)
    assert lost.value.__cause__ is error


@pytest.mark.asyncio
async def test_a_failure_after_a_cancellation_is_nobodys_and_makes_no_noise() -> None:
    link, question = Link(0.01), Question()
    task = asyncio.create_task(link.ask(question))
    await turns()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    await link.settle()
