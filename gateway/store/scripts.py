"""The scripts of `lua/` on one client: each is asked under the link's rules, timed, and its reply parsed."""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib.resources import files
from typing import Any, TypeVar

from redis.asyncio import Redis, RedisCluster

from gateway.store import wire
from gateway.store.link import Link

T = TypeVar("T")
Observe = Callable[[str, float, bool], None]
"""Hears each verb's seconds and whether it was answered."""


def source(name: str) -> str:
    return (files("gateway.store") / "lua" / f"{name}.lua").read_text()


class Scripts:
    def __init__(
        self, client: Redis | RedisCluster, sources: Mapping[str, str], timeout_s: float, observe: Observe
    ) -> None:
        self._client = client
        self._link = Link(timeout_s)
        self._observe = observe
        self._scripts = {verb: client.register_script(text) for verb, text in sources.items()}

    async def run(self, verb: str, keys: Sequence[str], args: Sequence[wire.Arg], parse: Callable[[Any], T]) -> T:
        """Raises StoreLost."""
        begun_s, ok = time.perf_counter(), False
        try:
            reply = await self._link.ask(lambda: self._scripts[verb](keys, args))
            ok = True
        finally:
            self._observe(verb, time.perf_counter() - begun_s, ok)
        return wire.parsed(parse, reply)

    async def wait(
        self, command: Callable[[Redis | RedisCluster], Awaitable[Any]], wait_s: float, parse: Callable[[Any], T]
    ) -> T:
        """No script: a command for which the store may rightly take `wait_s`.  Raises StoreLost."""
        return wire.parsed(parse, await self._link.ask(lambda: command(self._client), wait_s))

    async def aclose(self) -> None:
        """Also the client's end."""
        await self._link.settle()
        await self._client.aclose()
