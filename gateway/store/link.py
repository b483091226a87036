"""How a question reaches Redis and comes back.

Four rules: no question takes longer than its deadline, all waiting included; every failure is a StoreLost;
no answer is ever read by somebody else; and a store that does not answer is not asked (breaker.py).  For the
first, a process that was itself kept from running must not take the store for silent: what came meanwhile is
read before a deadline counts.  For the third, a question runs in a task of its own: cancelling whoever asked
does not stop it halfway, and the cancellation is passed on once it is over.  So a cancelled verb has happened or
failed by the time its caller sees CancelledError, and no second verb can overtake it.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

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
        self._home = home
        self._timeout_s = timeout_s
        self._breaker = Breaker(lambda: self._bounded(probe, timeout_s), changed)
        self._asked: set[asyncio.Task[Any]] = set()

    async def ask(self, question: Question[T], wait_s: float = 0.0) -> T:
        """`wait_s` is how long the store itself may rightly take."""
        self._breaker.check()
        task = asyncio.create_task(self._bounded(question, self._timeout_s + wait_s))
        self._asked.add(task)
        task.add_done_callback(self._asked.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait([task])
            raise

    async def aclose(self) -> None:
        """Returns when nothing is in flight any more."""
        if self._asked:
            await asyncio.wait(self._asked)
        await self._breaker.aclose()
        await self._home.aclose()

    async def _bounded(self, question: Question[T], timeout_s: float) -> T:
        try:
            async with _patience(timeout_s):
                answer = await self._home.ask(question)
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
