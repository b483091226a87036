"""The gateways' letters in the memory store."""

import asyncio
import itertools
from collections import deque
from collections.abc import Mapping

from gateway.ports import MAX_LETTERS


class Inboxes:
    def __init__(self) -> None:
        self._letters: dict[str, deque[tuple[int, bytes]]] = {}
        self._numbers = itertools.count(1)
        self._news: dict[str, asyncio.Event] = {}

    def post(self, letters: Mapping[str, bytes]) -> None:
        for gateway, letter in letters.items():
            self._letters.setdefault(gateway, deque(maxlen=MAX_LETTERS)).append((next(self._numbers), letter))
            self._event(gateway).set()

    async def collect(self, gateway: str, after: str, limit: int, wait_s: float) -> list[tuple[str, bytes]]:
        self._event(gateway).clear()
        if not (found := self._after(gateway, after)):
            try:
                async with asyncio.timeout(wait_s):
                    await self._event(gateway).wait()
            except TimeoutError:
                return []
            found = self._after(gateway, after)
        return found[:limit]

    def _after(self, gateway: str, after: str) -> list[tuple[str, bytes]]:
        last = int(after or 0)
        return [(str(number), letter) for number, letter in self._letters.get(gateway, ()) if number > last]

    def _event(self, gateway: str) -> asyncio.Event:
        return self._news.setdefault(gateway, asyncio.Event())
