"""How a question reaches Redis and comes back.

Four rules: every question has a deadline; every failure is a StoreLost; no answer is ever read by somebody else;
and a store that does not answer is not asked (breaker.py).  For the first, a process that was itself kept from
running must not take the store for silent: what came meanwhile is read before a deadline counts.  For the third,
what was sent is waited for: cancelling whoever asked does not stop it, and the cancellation is passed on once it
is over (pipe.py).  So a cancelled verb has happened or failed by the time its caller sees CancelledError, and no
second verb can overtake it.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from redis.exceptions import ResponseError

from gateway.errors import StoreLost
from gateway.store.breaker import Breaker
from gateway.store.home import FAILURES, Home, Question

T = TypeVar("T")


class Link:
    """`probe` is what a store that does not answer is asked until it does; `changed` hears True when it stops
    answering and False when it answers again."""

    def __init__(
        self,
        home: Home,
        timeout_s: float,
        probe: Question[object],
        changed: Callable[[bool], None] = lambda is_lost: None,
    ) -> None:
        """`timeout_s` is for all until there is an open pipe, over which questions bring their own."""
        self._home = home
        self._timeout_s = timeout_s
        self._breaker = Breaker(lambda: self._ask(probe), changed)

    async def ask(self, question: Question[T]) -> T:
        """Over the home's pipe."""
        self._breaker.check()
        return await self._ask(question)

    async def wait(self, question: Question[T], wait_s: float) -> T:
        """Over a connection of its own, for which the store may rightly take `wait_s`."""
        self._breaker.check()
        return await self._judged(self._bounded(question, self._timeout_s + wait_s))

    async def aclose(self) -> None:
        """Returns when nothing is in flight any more."""
        await self._breaker.aclose()
        await self._home.aclose()

    async def _ask(self, question: Question[T]) -> T:
        if self._home.is_open:
            return await self._judged(self._home.ask(question))
        return await self._judged(self._bounded(question, self._timeout_s))

    async def _bounded(self, question: Question[T], timeout_s: float) -> T:
        async with _patience(timeout_s):
            return await self._home.ask(question)

    async def _judged(self, asking: Awaitable[T]) -> T:
        try:
            answer = await asking
        except FAILURES as error:
            if isinstance(error, ResponseError):
                self._breaker.answered()
            else:
                self._breaker.failed(error)
            raise StoreLost(f"the store failed ({type(error).__name__})") from error
        self._breaker.answered()
        return answer


@contextlib.asynccontextmanager
async def _patience(seconds: float) -> AsyncIterator[None]:
    """A timeout whose second half begins when this process has noticed the end of the first."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(None) as limit:
        halfway = loop.call_later(seconds / 2, lambda: limit.reschedule(loop.time() + seconds / 2))
        try:
            yield
        finally:
            halfway.cancel()
