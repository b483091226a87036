"""The scripts of `lua/` on one home: each is asked under the link's rules, timed, and its reply parsed."""

import hashlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib.resources import files
from typing import Any, TypeVar

from redis.exceptions import NoScriptError

from gateway.store import wire
from gateway.store.home import Client, Home
from gateway.store.link import Link

T = TypeVar("T")
Observe = Callable[[str, float, bool], None]
"""Hears each verb's seconds and whether it was answered."""
Changed = Callable[[bool], None]
"""Hears True when the store stops answering, so that verbs fail at once, and False when it answers again."""


def source(name: str) -> str:
    return (files("gateway.store") / "lua" / f"{name}.lua").read_text()


class Scripts:
    """`sources` by verb; `probe` is a verb's name, keys and arguments, to be asked of a store that does not answer
    until it does.  Closes the home at its end."""

    def __init__(
        self,
        home: Home,
        sources: Mapping[str, str],
        probe: tuple[str, Sequence[str], Sequence[wire.Arg]],
        timeout_s: float,
        observe: Observe,
        changed: Changed = lambda is_lost: None,
    ) -> None:
        self._scripts = {verb: _Script(text, timeout_s) for verb, text in sources.items()}
        verb, keys, args = probe
        self._link = Link(home, timeout_s, lambda client: self._scripts[verb](client, keys, args), changed)
        self._observe = observe

    async def run(self, verb: str, keys: Sequence[str], args: Sequence[wire.Arg], parse: Callable[[Any], T]) -> T:
        """Raises StoreLost."""
        begun_s, ok = time.perf_counter(), False
        try:
            reply = await self._link.ask(lambda client: self._scripts[verb](client, keys, args))
            ok = True
        finally:
            self._observe(verb, time.perf_counter() - begun_s, ok)
        return wire.parsed(parse, reply)

    async def wait(
        self, command: Callable[[Client], Awaitable[Any]], wait_s: float, parse: Callable[[Any], T]
    ) -> T:
        """No script: a command for which the store may rightly take `wait_s`.  Raises StoreLost."""
        return wire.parsed(parse, await self._link.wait(command, wait_s))

    async def aclose(self) -> None:
        await self._link.aclose()


class _Script:
    """Sent as its hash; in full to a server that does not know it."""

    def __init__(self, source: str, timeout_s: float) -> None:
        self._source = source
        self._timeout_s = timeout_s
        self._hash = hashlib.sha1(source.encode()).hexdigest()

    async def __call__(self, client: Client, keys: Sequence[str], args: Sequence[wire.Arg]) -> Any:
        try:
            return await client.pipe.ask(("EVALSHA", self._hash, len(keys), *keys, *args), self._timeout_s)
        except NoScriptError:
            return await client.pipe.ask(("EVAL", self._source, len(keys), *keys, *args), self._timeout_s)
