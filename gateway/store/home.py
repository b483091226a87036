"""The server that has the queue, wherever that is now.

All keys of a queue lie in one slot, so one server of a Cluster has all of it, and any other answers MOVED with
that one's address.  redis-py's client for Clusters is not used: it repeats what may have happened, refuses
when its connections are busy, sends ASKING over one connection and the question over another, and loads a
script into every primary, those that are down included.

While a slot moves key by key (MIGRATE; not the atomic migration of Valkey 9 and Redis 8.4) every script gets
TRYAGAIN or ASK, because some of its KEYS are prefixes and never exist.  So nothing happens by halves: the store
is lost until the slot has moved.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from functools import partial
from typing import Any, TypeVar

from redis.asyncio import BlockingConnectionPool, ConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.sentinel import MasterNotFoundError
from redis.exceptions import (
    ClusterDownError,
    MasterDownError,
    MovedError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from gateway.store.pipe import Pipe
from gateway.store.urls import Address, Cluster, Form, OneServer, Sentinels, parse

T = TypeVar("T")

MAX_MOVES = 3
FAILURES = RedisError, OSError, RuntimeError
"""What comes instead of an answer.  uvloop raises the last on writing to a connection that it has closed, before
the connection's reader had its turn."""


class Client(Redis):
    """redis-py's, with a pipe for what the server answers at once."""

    def __init__(self, pool: ConnectionPool) -> None:
        super().__init__(connection_pool=pool)
        self.auto_close_connection_pool = True
        self.pipe = Pipe(partial(_connected, pool))

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        await self.pipe.aclose()
        await super().aclose(close_connection_pool)


async def _connected(pool: ConnectionPool) -> asyncio.StreamWriter:
    """redis-py has no public name for a connection's socket, which it does not use any more from here on."""
    connection: AbstractConnection = pool.make_connection()  # type: ignore[no-untyped-call]
    await connection.connect()  # type: ignore[no-untyped-call]
    writer = connection._writer
    assert writer is not None, "open"
    connection._reader = connection._writer = None
    return writer


Question = Callable[[Client], Awaitable[T]]
Open = Callable[[str], Client]


def open_client(url: str, *, max_connections: int = 16, connect_timeout_s: float = 0.5) -> Client:
    """A client of one server, fit for a Link.  Sockets have no timeout of their own: deadlines are the asker's,
    and redis-py closes a connection that is cancelled between a command and its reply.

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
    return Client(pool)


def connect(url: str, *, max_connections: int = 16, connect_timeout_s: float = 0.5) -> "Home":
    """By any URL that urls.py describes; raises ValueError for others."""

    def open(url: str) -> Client:
        return open_client(url, max_connections=max_connections, connect_timeout_s=connect_timeout_s)

    match parse(url):
        case OneServer(url):
            return Home(open, partial(_always, url))
        case Sentinels() as sentinels:
            return Home(open, partial(_primary, open, sentinels))
        case Cluster() as cluster:
            return Home(open, partial(_any_node, open, cluster), cluster.server)


class Home:
    """`find` gives the URL of the server to ask first; `form` makes one of the address in a MOVED."""

    def __init__(self, open: Open, find: Callable[[], Awaitable[str]], form: Form | None = None) -> None:
        self._open = open
        self._find = find
        self._form = form
        self._visit: _Visit | None = None
        self._is_sure = False
        self._looking = asyncio.Lock()

    @property
    def is_open(self) -> bool:
        """What is asked of a pipe now is sent at once."""
        return self._is_sure and self._visit is not None and self._visit.is_open

    async def ask(self, question: Question[T]) -> T:
        """Ask the server that has the queue.  One that answers that it has not has done nothing, so the question
        goes on to the next: it must be a single command.  Nothing else is ever asked twice."""
        for _ in range(MAX_MOVES + 1):
            visit = await self._arrive()
            try:
                return await visit.ask(question)
            except MovedError as moved:
                if self._form is None:
                    raise
                if visit is self._visit:
                    await self._go(self._form.at(Address(moved.host or visit.host, moved.port)))
            except BaseException as error:
                is_elsewhere = _is_elsewhere(error)
                if visit is self._visit:
                    self._is_sure = isinstance(error, ResponseError) and not is_elsewhere
                if not is_elsewhere:
                    raise
        raise ConnectionError("no server says that it has the queue")

    async def aclose(self) -> None:
        """Returns when nothing waits for an answer."""
        if self._visit:
            await self._visit.leave()
            await self._visit.closed.wait()

    async def _arrive(self) -> "_Visit":
        while self._visit is None or not self._is_sure:
            async with self._looking:
                if not self._is_sure:
                    await self._go(await self._find())
        return self._visit

    async def _go(self, url: str) -> None:
        self._is_sure = True
        left = self._visit
        if left is None or left.url != url:
            self._visit = _Visit(url, self._open(url))
            if left:
                await left.leave()


class _Visit:
    """The client of one server, closed once it has been left and nothing waits for an answer there."""

    def __init__(self, url: str, client: Client) -> None:
        self.url = url
        self._client = client
        self.closed = asyncio.Event()
        self._num_asked = 0
        self._is_over = False

    @property
    def host(self) -> str:
        return str(self._client.connection_pool.connection_kwargs["host"])

    @property
    def is_open(self) -> bool:
        return self._client.pipe.is_open

    async def ask(self, question: Question[T]) -> T:
        self._num_asked += 1
        try:
            return await question(self._client)
        finally:
            self._num_asked -= 1
            if self._is_over:
                await self._close()

    async def leave(self) -> None:
        self._is_over = True
        await self._close()

    async def _close(self) -> None:
        if not self._num_asked:
            await self._client.aclose()
            self.closed.set()


def _is_elsewhere(error: BaseException) -> bool:
    """Redis 6.2 wraps what a script runs into."""
    refusals = (ReadOnlyError, MasterDownError, ClusterDownError)
    return isinstance(error, refusals) or (isinstance(error, ResponseError) and "-READONLY" in str(error))


async def _always(url: str) -> str:
    return url


async def _primary(open: Open, place: Sentinels) -> str:
    async def ask(address: Address) -> str:
        async with open(place.sentinel.at(address)) as sentinel:
            command = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", place.service)
            found = await sentinel.execute_command(*command)  # type: ignore[no-untyped-call]
        if not found:
            raise MasterNotFoundError
        host, port = found
        return place.server.at(Address(str(host, "utf-8"), int(port)))

    return await _first(map(ask, place.seeds))


async def _any_node(open: Open, place: Cluster) -> str:
    async def ask(address: Address) -> str:
        url = place.server.at(address)
        async with open(url) as node:
            await node.ping()
        return url

    return await _first(map(ask, place.seeds))


async def _first(works: Iterable[Coroutine[Any, Any, T]]) -> T:
    """What the first of them that does not fail returns.  All at once, since a frozen one never answers."""
    tasks = [asyncio.create_task(work) for work in works]
    failure: Exception = MasterNotFoundError()
    try:
        for next_done in asyncio.as_completed(tasks):
            try:
                return await next_done
            except FAILURES as error:
                failure = error
        raise failure
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
