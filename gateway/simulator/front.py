"""All clients and the gateway's side of their requests: arrival, admission, ticket, put-back, ending.

Admission, tickets, attempts and what the store is told are the gateway's own code.  What is left out is text: an
answer is a count of tokens.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from gateway.call import Live, OpenCall
from gateway.errors import QueueFull, TooManyRequests
from gateway.fleet import Fleet
from gateway.gatekeeper import Gatekeeper
from gateway.load.record import ENDINGS, Ending, Records
from gateway.load.workload import TrafficClass, Workload
from gateway.outbox import Outbox
from gateway.policy.preset import Policy
from gateway.ports import Entry, Limits, Store
from gateway.request import Departed, Drawn, Request, ServiceClass, Targets, Ticket, Work
from gateway.simulator.lengths import Lengths
from gateway.ticketing import Aim, Ticketing
from triton_backend.contract import End, NewRow, Sampling

NAME = "front"
_WORK = Work([], 0, [], Sampling())
_PAYLOAD = msgspec.msgpack.encode(_WORK)
"""Every ticket's: an engine without a model needs no prompt, only its length."""
_FINISHED = {End.STOP, End.LENGTH}


class _Answer:
    """In the place of a Choice: how many tokens have been delivered."""

    __slots__ = ("tokens",)

    def __init__(self) -> None:
        self.tokens = range(0)


class _Asked(Live):
    """One request under way."""

    __slots__ = ("max_tokens", "request", "wanted_tokens")

    def __init__(self, request: int, call: OpenCall, ticket: Ticket, wanted_tokens: int) -> None:
        answer: Any = _Answer()
        prompt: Any = range(ticket.prompt_tokens)
        super().__init__(call, answer, ticket, msgspec.structs.replace(_WORK, prompt=prompt), None)
        self.request = request
        self.max_tokens = ticket.max_tokens
        self.wanted_tokens = wanted_tokens

    @property
    def entry(self) -> Entry:
        return Entry(self.ticket, _PAYLOAD)


class Front:
    def __init__(
        self,
        *,
        workload: Workload,
        store: Store,
        fleet: Fleet,
        policy: Policy,
        aims: Mapping[ServiceClass, Aim],
        shares: Mapping[ServiceClass, float],
        limits: Limits,
        lengths: Lengths,
        max_tokens: int,
        max_returns: int,
        wake: Callable[[], None],
        cancel: Callable[[Iterable[tuple[str, int]]], None],
        progress: Callable[[], object],
    ) -> None:
        """Clients allow `max_tokens`, and come back so many times when they are refused and told when."""
        size = len(workload)
        self._workload = workload
        self._store = store
        self._fleet = fleet
        self._lengths = lengths
        self._max_tokens = max_tokens
        self._max_returns = max_returns
        self._wake = wake
        self._progress = progress
        self._gatekeeper = Gatekeeper(policy.admission, store, fleet, limits, shares)
        self._ticketing = Ticketing(NAME, fleet, policy, aims)
        self._outbox = Outbox(
            store, wake, cancel, lambda leased: cancel((id, attempt) for id, attempt, _ in leased)
        )
        first = 0 if max_returns else None
        self._requests = [[_request(t, num_retries) for t in workload.classes] for num_retries in (first, 1)]
        self._prompt_tokens: list[int] = workload.prompt_tokens.tolist()
        self._wanted_tokens: list[int] = workload.output_tokens.tolist()
        self._class_index: list[int] = workload.class_index.tolist()
        self._live: dict[str, _Asked] = {}
        self._num_queued = 0
        self._num_left = size
        self._done = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._returning: set[asyncio.Task[None]] = set()
        self._first_s = np.full(size, np.nan)
        self._last_s = np.full(size, np.nan)
        self._output_tokens = np.zeros(size, dtype=np.int64)
        self._ending = np.zeros(size, dtype=np.uint8)
        self.put_backs: dict[str, int] = {}
        """By reason."""
        self.num_returns = 0
        """Refused clients that came back when told."""
        self.num_returns_admitted = 0

    # Arrivals

    async def run(self) -> None:
        """Until every request has ended."""
        telling = asyncio.create_task(self._outbox.run())
        try:
            start_s = self._loop.time()
            for request, arrival_s in enumerate(self._workload.arrival_s.tolist()):
                wait_s = start_s + arrival_s - self._loop.time()
                if wait_s > 0.0:
                    await asyncio.sleep(wait_s)
                await self._arrive(request, 0)
            await self._done.wait()
        finally:
            telling.cancel()

    async def _arrive(self, request: int, returns: int) -> None:
        try:
            await self._enter(request, is_return=returns > 0)
        except TooManyRequests as refused:
            if returns < self._max_returns and refused.retry_after_s is not None:
                task = self._loop.create_task(self._return(request, returns + 1, refused.retry_after_s))
                self._returning.add(task)
                task.add_done_callback(self._returning.discard)
            else:
                self._end(request, Ending.REJECTED)
        else:
            self.num_returns_admitted += returns > 0

    async def _return(self, request: int, returns: int, after_s: float) -> None:
        await asyncio.sleep(after_s)
        self.num_returns += 1
        await self._arrive(request, returns)

    async def _enter(self, number: int, is_return: bool) -> None:
        """Admit and queue, as the origin does.  Raises TooManyRequests."""
        request = self._requests[is_return][self._class_index[number]]
        prompt_tokens = self._prompt_tokens[number]
        max_tokens = min(self._max_tokens, self._fleet.longest_row_tokens - prompt_tokens)
        if max_tokens < 1:
            # The server's answer would be a 400.
            self._end(number, Ending.FAILED)
            return
        id = str(number)
        predicted = self._lengths.predict(number, max_tokens)
        ticket = self._ticketing.ticket(id, request, prompt_tokens, max_tokens, predicted)
        call = OpenCall(id, request, self._loop.time(), [prompt_tokens], [])
        asked = _Asked(number, call, ticket, min(self._wanted_tokens[number], max_tokens))
        call.live[id] = asked
        self._gatekeeper.arrived(call, request)
        limits = await self._gatekeeper.limits(call, request)
        self._live[id] = asked
        try:
            scores = await self._store.put([asked.entry], limits)
        except QueueFull as full:
            del self._live[id]
            raise await self._gatekeeper.full(call, request, full.reason) from full
        asked.ticket = msgspec.structs.replace(ticket, score=scores[0])
        asked.known = True
        self._num_queued += 1
        self._wake()

    # For the drivers

    def receive(self, drawn: Sequence[Drawn], departed: Sequence[Departed]) -> Sequence[tuple[str, int]]:
        for event in drawn:
            asked = self._live[event.ticket]
            asked.choice.tokens = range(event.index + 1)  # type: ignore[assignment]
            if asked.first_s is None:
                asked.first_s = self._loop.time()
                self._gatekeeper.first_token(asked.call, asked.first_s - asked.call.arrival_s)
        for left in departed:
            asked = self._live[left.ticket]
            if left.end in _FINISHED:
                self._finish(asked)
            elif left.end is End.FAILED:
                self._forget(asked)
                self._end(asked.request, Ending.FAILED)
            else:
                self._put_back(asked, left.end)
        return ()

    def claimed(self, tickets: Sequence[tuple[str, int]]) -> None:
        self._num_queued -= len(tickets)
        if self._num_queued:
            # Gateways would find out within 0.1 s, when they next look by themselves.
            self._wake()

    def lengths(self, new: NewRow) -> tuple[int, int]:
        """What the engine has to know of a row: prompt tokens, and answer tokens to come."""
        asked = self._live[new.ticket]
        return asked.ticket.prompt_tokens, asked.wanted_tokens - asked.ticket.index

    def _put_back(self, asked: _Asked, end: End | None) -> None:
        reason = str(end)
        self.put_backs[reason] = self.put_backs.get(reason, 0) + 1
        asked.next_attempt(died=False, evicted=end is End.EVICTED)
        self._num_queued += 1
        self._outbox.put_back(asked)

    def _finish(self, asked: _Asked) -> None:
        self._forget(asked)
        self._lengths.observe(asked.request, asked.max_tokens)
        self._first_s[asked.request] = asked.first_s
        self._last_s[asked.request] = self._loop.time()
        self._output_tokens[asked.request] = len(asked.choice.tokens)
        self._end(asked.request, Ending.FINISHED)

    def _forget(self, asked: _Asked) -> None:
        del self._live[asked.ticket.id]
        asked.call.live.clear()  # Else the two are a circle, which only the collector frees.
        self._outbox.finish(asked)

    def _end(self, request: int, how: Ending) -> None:
        self._ending[request] = ENDINGS.index(how)
        self._progress()
        self._num_left -= 1
        if not self._num_left:
            self._done.set()

    def records(self) -> Records:
        """Of all requests.  Gaps inside answers are not counted: an engine's steps go by in one event."""
        workload = self._workload
        size = len(workload)
        return Records(
            classes=workload.classes,
            tenants=("",),
            class_index=workload.class_index,
            tenant_index=np.zeros(size, dtype=np.int64),
            arrival_s=workload.arrival_s,
            first_token_s=self._first_s,
            last_token_s=self._last_s,
            prompt_tokens=workload.prompt_tokens,
            wanted_tokens=workload.output_tokens,
            output_tokens=self._output_tokens,
            max_gap_s=np.zeros(size),
            ending=self._ending,
            gap_counts=np.zeros((len(workload.classes), 1), dtype=np.int64),
        )


def _request(traffic: TrafficClass, num_retries: int | None) -> Request:
    return Request(
        model="simulated",
        service_class=traffic.service_class,
        targets=Targets(traffic.ttft_slo_s, traffic.tpot_slo_s),
        num_retries=num_retries,
    )
