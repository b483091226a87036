"""A client that reads one stream over as many connections as it takes."""

import asyncio
import contextlib
import json
from typing import Any

import msgspec

from gateway.openai import answer, position
from gateway.quota import UNLIMITED, Quota
from gateway.request import Delta, Request, Tenant
from tests.unit.fakes.tokenizer import token_text
from tests.unit.fakes.world import World


class Left(Exception):
    """Who reads has had enough."""


class Reader:
    def __init__(self, request: Request, number: int = 1, key: str = "", quota: Quota = UNLIMITED) -> None:
        """`number` makes the call's id."""
        self.call_id = f"{number:032x}"
        self.tenant = Tenant(key, quota=quota)
        self.last_id: str | None = None
        self.texts: dict[int, str] = {}
        self.scores: dict[int, list[float]] = {}
        self.offsets: dict[int, list[int]] = {}
        self.reasons: dict[int, str] = {}
        self.details: dict[int, Any] = {}
        self.usage: dict[str, int] | None = None
        self.is_done = False
        self._request = msgspec.structs.replace(request, stream=True, include_usage=True, tenant=self.tenant)

    async def ask(self, world: World, most_events: int = 10**9) -> None:
        """Leaves after so many events."""
        await self._read(world.origin.open(self._request, self.call_id, _now_s()), None, most_events)

    async def resume(self, world: World, most_events: int = 10**9) -> None:
        """From after the last event that was seen."""
        sent = None if self.last_id is None else position.of_event(self.last_id)[1]
        await self._read(world.origin.resume(self.call_id, self.tenant), sent, most_events)

    async def _read(self, opening: Any, sent: Any, most_events: int) -> None:
        left = most_events

        def take(deltas: list[Delta]) -> None:
            nonlocal left
            for event in stream.take(deltas).split(b"\n\n")[:-1]:
                if left == 0:
                    raise Left
                left -= 1
                self._take(event)

        with contextlib.suppress(Left):
            async with opening as call:
                stream = answer.Stream(call, token_text, sent)
                await call.read(take)

    def _take(self, event: bytes) -> None:
        lines = dict(line.split(b": ", 1) for line in event.split(b"\n"))
        if b"id" in lines:
            self.last_id = lines[b"id"].decode()
        if lines[b"data"] == b"[DONE]":
            self.is_done = True
            return
        chunk = json.loads(lines[b"data"])
        self.usage = chunk["usage"] or self.usage
        for choice in chunk["choices"]:
            index = choice["index"]
            self.texts[index] = self.texts.get(index, "") + choice["text"]
            if choice["logprobs"]:
                self.scores.setdefault(index, []).extend(choice["logprobs"]["token_logprobs"])
                self.offsets.setdefault(index, []).extend(choice["logprobs"]["text_offset"])
            if choice["finish_reason"]:
                self.reasons[index] = choice["finish_reason"]
                self.details[index] = choice.get("finish_details")


def _now_s() -> float:
    return asyncio.get_running_loop().time()
