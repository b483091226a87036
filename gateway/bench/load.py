"""All requests of a workload, each at its time whatever has become of those before: an open loop."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol

from gateway.bench.client import Answer, OnTokens
from gateway.load.record import Ending, Recorder
from gateway.load.workload import Arrival, Workload

Ask = Callable[[int, Arrival, OnTokens], Awaitable[Answer]]

_LAG_PERIOD_S = 0.05


class Progress(Protocol):
    def sent(self) -> None: ...

    def ended(self, how: Ending) -> None: ...


class Load:
    """One run of a workload, and what is to be known of the client's own side of it."""

    def __init__(self, workload: Workload, ask: Ask, progress: Progress) -> None:
        self.recorder = Recorder(workload)
        self.late_s: list[float] = []
        """How late each request was sent."""
        self.lag_s: list[float] = []
        """How late the event loop ran a timer: tokens were noticed that late too."""
        self.reasons: Counter[str] = Counter()
        """Why requests did not finish."""
        self.retry_after_s: list[float] = []
        """What refused clients were told."""
        self._workload = workload
        self._ask = ask
        self._progress = progress
        self._start_s = 0.0

    async def run(self) -> None:
        """Until every request has ended.  If cancelled, requests under way are dropped, and all that ended by then
        is still to be had."""
        loop = asyncio.get_running_loop()
        self._start_s = loop.time()
        async with self._lag_watched(), asyncio.TaskGroup() as group:
            for request, arrival in enumerate(self._workload):
                await asyncio.sleep(max(0.0, self._start_s + arrival.arrival_s - loop.time()))
                self.late_s.append(self._now_s() - arrival.arrival_s)
                self._progress.sent()
                group.create_task(self._one(request, arrival))

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time() - self._start_s

    async def _one(self, request: int, arrival: Arrival) -> None:
        answer = await self._ask(
            request, arrival, lambda count: self.recorder.token(request, self._now_s(), count)
        )
        if answer.usage:
            self.recorder.counted(request, answer.usage.prompt_tokens, answer.usage.completion_tokens)
        if answer.reason:
            self.reasons[answer.reason] += 1
        if answer.retry_after_s is not None:
            self.retry_after_s.append(answer.retry_after_s)
        self.recorder.end(request, answer.ending)
        self._progress.ended(answer.ending)

    @contextlib.asynccontextmanager
    async def _lag_watched(self) -> AsyncIterator[None]:
        watch = asyncio.create_task(self._watch_lag())
        try:
            yield
        finally:
            watch.cancel()

    async def _watch_lag(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due_s = loop.time() + _LAG_PERIOD_S
            await asyncio.sleep(_LAG_PERIOD_S)
            self.lag_s.append(loop.time() - due_s)
