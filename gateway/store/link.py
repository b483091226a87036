"""How a question reaches Redis and comes back.

Three rules: no question takes longer than its deadline, all waiting included; every failure is a StoreLost;
and no answer is ever read by somebody else.  For the last, a question runs in a task of its own: cancelling
whoever asked does not stop it halfway, and the cancellation is passed on once it is over.  So a cancelled
verb has happened or failed by the time its caller sees CancelledError, and no second verb can overtake it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from redis.asyncio import BlockingConnectionPool, Redis
from redis.exceptions import RedisClusterException, RedisError

from gateway.errors import StoreLost

T = TypeVar("T")


def connect(url: str, *, max_connections: int = 16, connect_timeout_s: float = 0.5) -> Redis:
    """A client fit for a Link.  Sockets have no timeout of their own: the Link's deadline covers them, and
    redis-py closes a connection that is cancelled between a command and its reply.

    RESP2, because over RESP3 redis-py turns maintenance notifications on and then skips its check that a
    pooled connection has no unread reply."""
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=max_connections,
        timeout=None,
        protocol=2,
        socket_timeout=None,
        socket_connect_timeout=connect_timeout_s,
    )
    return Redis.from_pool(pool)


class Link:
    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._asked: set[asyncio.Task[Any]] = set()

    async def ask(self, question: Callable[[], Awaitable[T]], wait_s: float = 0.0) -> T:
        """`wait_s` is how long the store itself may rightly take."""
        task = asyncio.create_task(self._bounded(question, wait_s))
        self._asked.add(task)
        task.add_done_callback(self._asked.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait([task])
            raise

    async def _bounded(self, question: Callable[[], Awaitable[T]], wait_s: float) -> T:
        try:
            async with asyncio.timeout(self._timeout_s + wait_s):
                return await question()
        except (RedisError, RedisClusterException, OSError) as error:
            raise StoreLost(f"the store failed ({type(error).__name__})") from error

    async def settle(self) -> None:
        """Returns when nothing is in flight any more."""
        if self._asked:
            await asyncio.wait(self._asked)
