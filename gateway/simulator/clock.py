"""An event loop whose clock jumps to the next timer instead of waiting for it.

Its heap of timers is the simulator's list of events.  No threads, no sockets: nothing may become ready by itself.
"""

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from itertools import count
from typing import Any, TypeVarTuple

_Ts = TypeVarTuple("_Ts")
_RESOLUTION_S = 1e-9
"""Timers due within so little are due at once, as in asyncio."""
_FEW_TIMERS = 1024


class _Handle:
    """What asyncio's own also keep, for loops that are debugged, takes longer than all else about an event."""

    __slots__ = ("args", "callback", "context")

    def __init__(
        self, callback: Callable[..., object] | None, args: tuple[Any, ...], context: Context | None
    ) -> None:
        self.callback = callback
        self.args = args
        self.context = copy_context() if context is None else context

    def cancel(self) -> None:
        self.callback = None
        self.args = ()

    def cancelled(self) -> bool:
        return self.callback is None


class VirtualLoop(asyncio.BaseEventLoop):
    """A callback that raises ends the run: on virtual time nobody would ever notice that it is missing."""

    def __init__(self) -> None:
        super().__init__()
        self._now_s = 0.0
        self._soon: deque[_Handle] = deque()
        self._timers: list[tuple[float, int, _Handle]] = []
        """A heap: time, number, and what is due then."""
        self._numbers = count()
        self._max_timers = _FEW_TIMERS
        """With more, those that were cancelled are thrown out."""

    def time(self) -> float:
        return self._now_s

    def call_soon(self, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None) -> Any:
        handle = _Handle(callback, args, context)
        self._soon.append(handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_later(
        self, delay: float, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> Any:
        return self.call_at(self._now_s + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> Any:
        handle = _Handle(callback, args, context)
        heapq.heappush(self._timers, (when, next(self._numbers), handle))
        if len(self._timers) > self._max_timers:
            self._timers = [timer for timer in self._timers if not timer[2].cancelled()]
            heapq.heapify(self._timers)
            self._max_timers = _FEW_TIMERS + 2 * len(self._timers)
        return handle

    def _run_once(self) -> None:
        """What asyncio runs until it is told to stop: all that is due, and nothing that comes of it."""
        soon = self._soon
        while self._timers and self._timers[0][2].cancelled():
            heapq.heappop(self._timers)
        if not soon:
            if not self._timers:
                raise RuntimeError("deadlock: every task waits, and no timer is set")
            self._now_s = max(self._now_s, self._timers[0][0])
        while self._timers and self._timers[0][0] < self._now_s + _RESOLUTION_S:
            soon.append(heapq.heappop(self._timers)[2])
        for _ in range(len(soon)):
            handle = soon.popleft()
            if handle.callback is not None:
                handle.context.run(handle.callback, *handle.args)


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run to the end on virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(coroutine)
