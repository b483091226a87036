"""When a store that does not answer is left alone.

After MAX_FAILURES questions in a row without an answer the breaker opens: nothing is asked any more but a
probe, one at a time, after pauses that double from MIN_PAUSE_S to MAX_PAUSE_S.  Any answer closes it.  The
longest pause is short, so that leases are renewed and audits run soon after a thaw.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import structlog

from gateway.errors import StoreLost

log = structlog.get_logger()

MAX_FAILURES = 5
MIN_PAUSE_S = 0.05
MAX_PAUSE_S = 0.5


class Breaker:
    """`probe` asks something and raises StoreLost if it gets no answer; `changed` hears of every opening and
    closing."""

    def __init__(self, probe: Callable[[], Awaitable[object]], changed: Callable[[bool], None]) -> None:
        self._probe = probe
        self._changed = changed
        self._num_failures = 0
        self._is_open = False
        self._probing: asyncio.Task[None] | None = None

    def check(self) -> None:
        """Raises StoreLost while the breaker is open."""
        if self._is_open:
            raise StoreLost("the store does not answer")

    def answered(self) -> None:
        self._num_failures = 0
        if self._is_open:
            self._is_open = False
            self._changed(False)
            log.info("store.answers_again")

    def failed(self, error: Exception) -> None:
        self._num_failures += 1
        if self._num_failures >= MAX_FAILURES and not self._is_open:
            self._is_open = True
            self._changed(True)
            log.warning("store.does_not_answer", failures=self._num_failures, error=type(error).__name__)
            if self._probing is None or self._probing.done():
                self._probing = asyncio.create_task(self._probe_until_closed())

    async def aclose(self) -> None:
        if self._probing:
            self._probing.cancel()
            await asyncio.wait([self._probing])

    async def _probe_until_closed(self) -> None:
        pause_s = MIN_PAUSE_S
        while self._is_open:
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, MAX_PAUSE_S)
            with contextlib.suppress(StoreLost):
                await self._probe()
