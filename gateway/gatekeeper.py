"""Lets calls in, or tells them when to come back: the policy's admission, asked of what waits now.

If nothing waited a moment ago, it is not asked for again: a call is let in as if that were so still, on condition
that it is when it is started or queued, which the store checks in the same step.
"""

import asyncio
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from math import inf

import msgspec

from gateway import card
from gateway.call import OpenCall, Promise
from gateway.card import Cards
from gateway.errors import QueueFull, StoreLost, TooManyRequests, Unavailable
from gateway.fleet import Fleet
from gateway.policy import admission, demand, line
from gateway.policy.admission import AdmissionRule, Asked, Everybody, Forecast, Load
from gateway.policy.demand import Demand, octave
from gateway.policy.line import Line
from gateway.policy.margin import Margin
from gateway.ports import Entry, Limits, Store
from gateway.request import Backlog, Request, ServiceClass

Start = Callable[[Sequence[Entry]], Awaitable[Sequence[float] | None]]
"""Driver.start of the driver that should run new tickets."""

_IDLE_S = 1.0
"""For so long it may be assumed that still nothing waits."""
_MAX_PUTS = 4
"""So often is admission asked because others came in between."""


class Gatekeeper:
    def __init__(
        self,
        rule: AdmissionRule,
        store: Store,
        fleet: Fleet,
        limits: Limits,
        shares: Mapping[ServiceClass, float],
    ) -> None:
        self._rule = rule
        self._store = store
        self._fleet = fleet
        self._limits = limits
        self._shares = shares
        self._lines = {name: Line() for name in ServiceClass}
        self._margins: defaultdict[tuple[ServiceClass, int], Margin] = defaultdict(Margin)
        self._demand = {name: Demand() for name in ServiceClass}
        self._others = Cards()
        self._idle_until_s = -inf
        """Nothing waited when the store was asked last, and until then that may be assumed."""
        self._ahead_s = 0.0
        """The store's clock less the event loop's, by the last answer."""

    def card(self) -> bytes:
        """What the other gateways should know."""
        now_s = asyncio.get_running_loop().time()
        return card.encode({c: card.word(self._demand[c], self._lines[c], now_s) for c in ServiceClass})

    def heard(self, cards: Iterable[bytes]) -> None:
        """The others' cards."""
        self._others.read(cards, asyncio.get_running_loop().time())

    def arrived(self, call: OpenCall, request: Request) -> None:
        """To be told of each call once, before it is to enter."""
        now_s = asyncio.get_running_loop().time()
        tickets = call.tickets
        seconds = sum(ticket.seconds for ticket in tickets)
        self._demand[request.service_class].note(tickets[0].ttft_s, seconds, now_s)
        if request.num_retries:
            self._lines[request.service_class].returned(now_s)

    async def enter(
        self, call: OpenCall, request: Request, start: Start, wake: Callable[[], None]
    ) -> tuple[list[Entry], Sequence[float]]:
        """Queue the call's tickets, or have a driver `start` them if nothing waits: these, with their scores.

        `wake` is called when they are on their way into the queue.  The store answers in order, so whoever looks
        from then on sees them, and need not wait for the answer that is theirs.

        Raises TooManyRequests and Unavailable if nothing was queued, and StoreLost if it is not known.
        """
        entries: list[Entry] = []
        limits = self._limits_if_idle(call, request)
        if limits is not None:
            entries = call.entries
            if (scores := await start(entries)) is not None:
                return entries, scores
        for _ in range(_MAX_PUTS):
            limits = limits or await self.limits(call, request)
            entries = entries or call.entries
            wake()
            try:
                return entries, await self._store.put(entries, limits)
            except QueueFull as full:
                reason = full.reason
                if reason != "seconds":
                    break
            limits = None
        raise await self.full(call, request, reason)

    def _limits_if_idle(self, call: OpenCall, request: Request) -> Limits | None:
        """For a call that may come in if nothing waits, when that may be so."""
        now_s = asyncio.get_running_loop().time()
        if now_s > self._idle_until_s or isinstance(self._rule, Everybody):
            return None
        _check_target(call, request)
        backlog = Backlog(now_s + self._ahead_s, now_s + self._ahead_s, {})
        asked, load = self._load(call, request, backlog)
        forecast = self._rule.forecast(asked, load)
        if forecast.late_s > 0:
            return None
        call.promise = Promise(asked, forecast.ttft_s)
        # The store counts whole microseconds, ticket by ticket.
        return self._relied_on(call, backlog, asked.seconds + 1e-6 * len(call.live))

    async def limits(self, call: OpenCall, request: Request) -> Limits:
        """The bounds under which the call may be queued, relied on by its admission.

        Raises TooManyRequests, and Unavailable if the store does not answer.
        """
        if isinstance(self._rule, Everybody):
            return self._limits
        _check_target(call, request)
        try:
            backlog = await self._backlog(call)
        except StoreLost as lost:
            raise Unavailable("The queue does not answer.", retry_after_s=2.0) from lost
        asked, load = self._load(call, request, backlog)
        forecast = self._rule.forecast(asked, load)
        if forecast.late_s > 0:
            raise self._refusal(request, asked, load, forecast.late_s)
        call.promise = Promise(asked, forecast.ttft_s)
        max_seconds = backlog.seconds + asked.seconds + _slip_s(asked, load, forecast)
        return self._relied_on(call, backlog, max_seconds)

    def _load(self, call: OpenCall, request: Request, backlog: Backlog) -> tuple[Asked, Load]:
        """What the call asks for, and what it meets."""
        now_s = asyncio.get_running_loop().time()
        asked, start_s = self._look(call, backlog)
        load = Load(
            backlog=backlog.slots,
            now_s=backlog.now_s,
            rate=self._fleet.work_rate,
            start_s=start_s,
            shares=self._shares,
            impatient=self._impatient(asked, now_s),
            # Who was told to come now has a right to the reserve too.
            margin=1.0 if request.num_retries else self._margin(asked).part,
            promised=[] if request.num_retries else self._promised(asked.service_class, now_s),
        )
        return asked, load

    def _relied_on(self, call: OpenCall, backlog: Backlog, max_seconds: float) -> Limits:
        max_lead_s = self._max_lead_s(call, backlog)
        return msgspec.structs.replace(self._limits, max_seconds=max_seconds, max_lead_s=max_lead_s)

    async def full(self, call: OpenCall, request: Request, reason: str) -> TooManyRequests:
        """The refusal of a call that passes a bound of the queue."""
        try:
            backlog = await self._backlog(call)
        except StoreLost:
            return TooManyRequests(f"Too many requests are waiting ({reason}).", retry_after_s=1.0)
        asked, start_s = self._look(call, backlog)
        load = Load(backlog.slots, backlog.now_s, self._fleet.work_rate, start_s, self._shares)
        # Half of what waits should have gone by then.
        late_s = 0.5 * backlog.seconds / load.rate if load.rate else 1.0
        return self._refusal(request, asked, load, late_s, reason)

    def first_token(self, call: OpenCall, ttft_s: float) -> None:
        """The call's first token came: was the promise kept?"""
        if call.promise is not None:
            asked = call.promise.asked
            planned_part = call.promise.ttft_s / asked.ttft_s
            self._margin(asked).learn(planned_part, kept=ttft_s <= asked.ttft_s)

    def _margin(self, asked: Asked) -> Margin:
        """Short waits are not estimated wrongly in the same way as long ones."""
        return self._margins[asked.service_class, octave(asked.ttft_s)]

    def _impatient(self, asked: Asked, now_s: float) -> float:
        """Work of the class that comes in a second, to any gateway, and passes this."""
        others = self._others.demand(asked.service_class, now_s)
        return demand.tighter(asked.ttft_s, [self._demand[asked.service_class].rates(now_s), *others])

    def _promised(self, service_class: ServiceClass, now_s: float) -> list[tuple[float, float]]:
        """Work of those whom any gateway told to come back."""
        return self._lines[service_class].promised(now_s) + self._others.promised(service_class, now_s)

    def _look(self, call: OpenCall, backlog: Backlog) -> tuple[Asked, float]:
        """What the call asks for, and when its first prompt could start if nothing waited."""
        first = call.tickets[0]
        lead_s = min(backlog.start_s - backlog.now_s, self._max_lead_s(call, backlog))
        start_s, slowdown = self._fleet.start(backlog.now_s + lead_s + first.slack_s)
        return _asked(call, lead_s, slowdown), start_s

    def _max_lead_s(self, call: OpenCall, backlog: Backlog) -> float:
        """What waits takes so long, and the call's own tickets but the last; no virtual clock can rightly be
        further ahead."""
        rate = self._fleet.work_rate
        before_s = backlog.seconds + sum(ticket.seconds for ticket in call.tickets[:-1])
        return before_s / rate if rate > 0 else inf

    async def _backlog(self, call: OpenCall) -> Backlog:
        first = call.tickets[0]
        backlog = await self._store.backlog(first.service_class, first.tenant)
        now_s = asyncio.get_running_loop().time()
        self._ahead_s = backlog.now_s - now_s
        self._idle_until_s = -inf if backlog.slots else now_s + _IDLE_S
        return backlog

    def _refusal(
        self, request: Request, asked: Asked, load: Load, late_s: float, reason: str = ""
    ) -> TooManyRequests:
        rate = admission.class_rate(asked.service_class, load) or 1.0
        if request.num_retries is None:
            retry_after_s = line.guess(late_s, random.random())
        else:
            now_s = asyncio.get_running_loop().time()
            place = self._lines[asked.service_class]
            late_s = max(late_s, self._others.end_in_s(asked.service_class, now_s))
            retry_after_s = place.book(now_s, late_s, asked.seconds, rate, random.random())
        why = reason or f"targets would be missed by {late_s:.1f} s"
        return TooManyRequests(f"Too many requests are waiting ({why}).", retry_after_s=retry_after_s)


def _check_target(call: OpenCall, request: Request) -> None:
    """Raises TooManyRequests if the client names a target that no replica could keep."""
    prefill_s = max(ticket.prefill_s for ticket in call.tickets)
    target_s = request.targets.ttft_s
    if target_s is not None and prefill_s > target_s:
        raise TooManyRequests(
            f"The prompt alone takes about {prefill_s:.2f} s, more than the target of {target_s:g} s for the "
            "first token; ask for more time.",
            code="target_unattainable",
            should_retry=False,
        )


def _asked(call: OpenCall, lead_s: float, slowdown: float) -> Asked:
    tickets = call.tickets
    first = tickets[0]
    return Asked(
        service_class=first.service_class,
        ttft_s=first.ttft_s,
        slack_s=first.slack_s,
        lead_s=lead_s,
        seconds=sum(ticket.seconds for ticket in tickets),
        first_s=slowdown * sum(ticket.prefill_s for ticket in tickets),
    )


def _slip_s(asked: Asked, load: Load, forecast: Forecast) -> float:
    """Work that others may queue between the reading and the put, as much as leaves the decision what it is; with
    more, it has to be taken again."""
    rate = admission.class_rate(asked.service_class, load)
    return max(0.1 * asked.ttft_s * load.rate, -forecast.late_s * rate) if rate else inf
